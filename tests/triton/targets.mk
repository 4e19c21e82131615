# Deployed models, served by a real Triton.

VENV_TRITON := .venv-triton

.PHONY: triton

triton: $(VENV_TRITON)/.installed ## serve models as bnfold deploys them on a real Triton, compare, time (docs/deploy.md): ten minutes; MODELS=more.onnx SECONDS=3
	@PYTHONPATH=$(CURDIR) $(VENV_TRITON)/bin/python -m tests.triton.measure --seconds $(or $(SECONDS),3) $(MODELS)

$(VENV_TRITON)/.installed: tests/triton/requirements.txt | check-python
	@echo "making $(VENV_TRITON)" >&2
	@$(PYTHON) -m venv $(VENV_TRITON)
	@$(VENV_TRITON)/bin/python -m pip install -qq -r $< hatchling
	@$(VENV_TRITON)/bin/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@
