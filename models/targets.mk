# The training reference's targets. torch and its data live in an environment of their own: bnfold never needs them.

VENV_TRAIN := .venv-train
TRAIN_PY := $(VENV_TRAIN)/bin/python
export OMP_NUM_THREADS ?= 1

.PHONY: .venv-train train-demo reproduce reproduce-full quantise end-to-end test-train

.venv-train: $(VENV_TRAIN)/.installed

$(VENV_TRAIN)/.installed: pyproject.toml constraints.txt | check-python
	$(call environment,$(VENV_TRAIN),[train$(comma)test],constraints.txt)

comma := ,

models/.data/usr: | $(VENV_TRAIN)/.installed
	@$(TRAIN_PY) -m models.data

test-train: $(VENV_TRAIN)/.installed ## the training reference's tests (they skip without torch)
	@$(TRAIN_PY) -m pytest tests/models

train-demo: $(VENV_TRAIN)/.installed ## train a small BN-Inception, export it, fold it: two minutes
	@rm -rf models/runs/demo
	@$(TRAIN_PY) -m models.train_demo

# Finished runs are kept in models/runs and skipped, a stopped one resumes: delete the folder to start over.
reproduce: models/.data/usr ## a ten-minute subset of the paper's figures; plots in models/runs/figure*-quick
	@$(TRAIN_PY) -m models.figure1 --scale quick --jobs 2
	@$(TRAIN_PY) -m models.figure3 --scale quick --jobs 2
	@$(TRAIN_PY) -m models.figure4 --scale quick --jobs 2

reproduce-full: models/.data/usr ## the tables and plots of docs/training.md (an hour or two, resumable)
	@$(TRAIN_PY) -m models.figure1 --scale full --jobs 2
	@$(TRAIN_PY) -m models.figure3 --scale full --jobs 2
	@$(TRAIN_PY) -m models.figure4 --scale full --jobs 2

quantise: $(VENV_TRAIN)/.installed ## int8 by ONNX Runtime, of networks as they are and folded (docs/quantisation.md): an hour, resumable
	@$(TRAIN_PY) -m models.quantise

end-to-end: $(VENV_TRAIN)/.installed ## train, export, optimize, verify, deploy, query; by commands and by the library: three minutes (docs/end-to-end.md)
	@$(TRAIN_PY) -m models.end_to_end
