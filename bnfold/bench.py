"""Is the optimized model faster? Both run in turns, and the answer is a ratio with its confidence interval."""
