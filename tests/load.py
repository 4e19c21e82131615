"""Many models in one process, and in many threads: memory stays, results are the same.

python -m tests.load [N]     fold N models (1,000) one after the other, every tenth verified, and print the memory
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import bnfold
from tests.program import foldable, stubborn
from tests.test_fuzz import Numbers, build

WARM = 100
"""Models after which caches are full."""


def models(count: int) -> Iterator[bytes]:
    """Models that differ."""
    for number in range(count):
        if number % 3 == 0:
            yield foldable(number).SerializeToString()
            continue
        b, outputs = build(Numbers(number))
        yield b.model(*outputs).SerializeToString() if b.nodes else stubborn(number).SerializeToString()


def resident() -> int:
    """Bytes of memory that this process holds now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def grown(count: int, verify_every: int = 10) -> int:
    """Bytes that folding so many models adds, once caches are full."""
    before = 0
    for number, model in enumerate(models(WARM + count)):
        if number == WARM:
            before = resident()
        bnfold.optimize(model, verify=number % 3 == 0 and number % verify_every == 0)
    return resident() - before


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    more = grown(count)
    sys.stdout.write(f"{count} models after the first {WARM}: {more / 1e6:+.1f} MB\n")
    sys.exit(more > 20e6)
