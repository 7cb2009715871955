# distmoe: every command makes what it needs. `make help` lists them.
#
# Variables: PYTHON=python3.12 (environment), ACCELERATOR=cuda|cpu (build of torch; default: what this machine has), RANKS=2 (processes of demo and bench), ARGS="..." (passed on).

VENV := .venv
BIN := $(VENV)/bin
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
CORES := $(shell getconf _NPROCESSORS_ONLN)

ifeq ($(GPUS),0)
# DeepSpeed would guess; without a GPU it must not.
export DS_ACCELERATOR := cpu
export CUDA_VISIBLE_DEVICES :=
RANKS ?= 2
else
RANKS ?= $(if $(filter 1,$(GPUS)),1,2)
endif

# The ranks share the cores; more threads than cores make CPU ranks wait for each other.
export OMP_NUM_THREADS ?= $(shell n=$$(( $(CORES) / $(RANKS) )); echo $$(( n > 0 ? n : 1 )))
# A build of DeepSpeed's operators that was killed leaves a lock; a private folder keeps it from other projects.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.torch_extensions
# The launcher and ninja are looked up on PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

RUN := runs/make_demo
# The first test text of the demo's task planted0_b. Its label is class0.
TEXT := stiklo febro stoma soste tise foklu rafli tovu susi digi grobi digi braku rose mego flego

.DEFAULT_GOAL := help
.PHONY: help install venv demo test test-slow test-cluster test-cluster-faults test-slow-link test-structural test-reshard test-faults lint format docs bench clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

# A stamp is newer than what the environment was made from: nothing is installed twice, but another choice is looked at.
STAMP := $(VENV)/.installed$(ACCELERATOR:%=-for-%)

$(STAMP): pyproject.toml tools/install.sh
	tools/install.sh $(VENV)
	touch $(VENV)/.installed $@

$(STAMP)-dev: pyproject.toml tools/install.sh
	tools/install.sh $(VENV) dev
	touch $(VENV)/.installed $(VENV)/.installed-dev $(STAMP) $@

install: $(STAMP)  ## Make .venv and install distmoe

venv: $(STAMP)-dev  ## The same with the tools of developers

demo: install  ## Learn task groups offline, train with them, export, predict with stock transformers
	$(BIN)/deepspeed --num_gpus $(RANKS) distmoe/train.py --recipe task_moe_learned run.name=$(notdir $(RUN)) \
		structure.learn.trial_steps=0 --resume never $(ARGS)
	$(BIN)/python tools/convert_to_hf.py $$(ls -d $(RUN)/checkpoints/step_* | sort -V | tail -n 1) $(RUN)/export
	$(BIN)/python tools/predict.py $(RUN)/export
	$(BIN)/python tools/predict.py $(RUN)/export --task planted0_b "$(TEXT)"
	@echo "report: $(RUN)/report/index.html    model: $(RUN)/export"

test: venv  ## All default tests (no GPU, no network, two cores)
	$(BIN)/python -m pytest $(ARGS)

test-slow: venv  ## The tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-reshard: venv  ## Checkpoints between all arrangements of ranks, as a table
	$(BIN)/python -m pytest -m reshard -s tests/reshard $(ARGS)

test-faults: venv  ## Runs killed at 64 instants, checkpoints damaged in every way, as tables
	$(BIN)/python -m pytest -m faults -s tests/faults $(ARGS)

test-cluster: venv  ## The batch scripts on a real Slurm of three nodes, on this machine (root; Debian's packages)
	tests/cluster/slurm/install.sh
	$(BIN)/python -m pytest -m cluster -rs tests/cluster --ignore tests/cluster/test_hosts.py $(ARGS)

test-structural: venv  ## Structural learning over 2, 4 and 5 ranks and killed at every stage, as tables
	$(BIN)/python -m pytest -m structural tests/integration $(ARGS)

test-cluster-faults: venv  ## A lost host, then 30 random faults in a run on two hosts, with a table (root; namespaces; pdsh)
	$(BIN)/python -m pytest -m cluster -rs tests/cluster/test_hosts.py
	$(BIN)/python -m tests.cluster.faults $(ARGS)

test-slow-link: venv  ## One all-to-all per task group against a global one over a slow link (root; network namespaces)
	$(BIN)/python -m tests.cluster.slow_link $(ARGS)

lint: venv  ## Style, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: venv  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: venv  ## Write docs/configuration.md from the code
	$(BIN)/python tools/document_configuration.py

bench: install  ## Measure the routed layer, the all-to-all and a training step
	$(BIN)/python tools/bench/moe_layer.py $(ARGS)
	$(BIN)/python tools/bench/all_to_all.py $(ARGS)
	$(BIN)/python tools/bench/step_time.py $(ARGS)

clean:  ## Remove the environment, caches and build products; runs/ stays
	rm -rf $(VENV) .torch_extensions build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
