# Everything a user does, by name. Bare `make` lists it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-dev sft dpo kto sweep-beta infer tensorboard test coverage lint campaign gpu-check image sif lock clean
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON ?= python3
TORCH ?= auto
PORT ?= 6006
PY = $(VENV)/bin/python

# Empty means: what the YAML says. Taken from the command line only, never from an OUT or MODEL that the environment
# happens to have.
MODEL :=
DATA :=
OUT :=
BETA :=
BETAS :=
LR :=
EPOCHS :=
INSTRUCTION :=
ARGS :=
COVERAGE :=

# Recipes read these from the environment, so that quotes, dollars and spaces arrive as they were typed:
# `value` takes the text before make expands it.
define literally
override $(1) := $$(value $(1))
export $(1)
endef
$(foreach name,MODEL DATA OUT BETA BETAS LR EPOCHS INSTRUCTION,$(eval $(call literally,$(name))))
override ARGS := $(value ARGS)

EMBEDDED_MODEL := models/smollm2-135m-instruct/config.json
OLDEST_PIP = $(VENV)/oldest-pip
INSTALL = PYTHON="$(PYTHON)" TORCH="$(TORCH)" requirements/install.sh "$(VENV)"
# `set -x` shows the command that the variables amount to.
FIT = set -x; "$(PY)" -m dpo_lightning fit --config configs/$@.yaml \
	$${MODEL:+--model.policy.path="$$MODEL"} $${DATA:+--data.train="$$DATA"} $${OUT:+--output_dir="$$OUT"} \
	$${LR:+--model.learning_rate="$$LR"} $${EPOCHS:+--trainer.max_epochs="$$EPOCHS"}

help: ## show this help
	@echo 'usage: make TARGET [VARIABLE=value ...]'; echo; echo 'Targets:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo 'Variables:'
	@awk -F ' *: *' '/^## / { sub(/^## /, ""); name = $$1; sub(/^[A-Z]+ *: */, ""); printf "  %-12s %s\n", name, $$0 }' $(MAKEFILE_LIST)

## MODEL: model folder or name to start from (infer: to answer with; otherwise outputs/dpo/final_model)
## DATA: training file
## OUT: folder of the run
## BETA: strength of the preference loss (dpo, kto)
## BETAS: values of beta, in quotes (sweep-beta: 0.01 0.05 0.1 0.2 0.5)
## LR: learning rate
## EPOCHS: number of epochs
## INSTRUCTION: what to ask (infer), in single quotes
## ARGS: more flags for the command, for pytest (test), for relock.sh (lock) or for the parts of gpu-check
## VENV: virtual environment (.venv)
## PYTHON: Python to make it with (python3)
## TORCH: build of torch: auto (CUDA where there is a GPU), cpu or cuda
## PORT: port of TensorBoard (6006)
## BASE: base image by its digest (image), NAME@sha256:...
## ENGINE: what builds the image: docker, podman or buildah (the first that is installed)

setup: ## install everything into VENV from the hash-checked locks
	@$(INSTALL)

setup-dev:
	@$(INSTALL) requirements/test.lock

# The embedded model is fetched only where no other is named.
$(EMBEDDED_MODEL): | setup
	"$(PY)" -m dpo_lightning fetch-model
sft dpo kto sweep-beta: setup $(if $(MODEL),,$(EMBEDDED_MODEL))

sft: ## supervised fine-tuning: configs/sft.yaml
	$(if $(BETA),$(error BETA means nothing to sft: leave it out))
	@$(FIT) $(ARGS)

# The recipe's cap on the steps belongs to its example: it goes where other data or a number of epochs is named.
dpo: ## preference tuning: configs/dpo.yaml
	@$(FIT) $${BETA:+--model.loss.beta="$$BETA"} $(if $(DATA)$(EPOCHS),--trainer.max_steps=-1) $(ARGS)

kto: ## tuning on unpaired rows (an answer and a label): configs/kto.yaml
	@$(FIT) $${BETA:+--model.loss.beta="$$BETA"} $(if $(DATA)$(EPOCHS),--trainer.max_steps=-1) $(ARGS)

# BETAS is split into words, and holds nothing else that the shell would expand.
# 24 steps of 4 rows, as betas hardly differ after the 8 of the example. Points are evaluated by `evaluate` alone.
sweep-beta: ## train and evaluate a model for each of BETAS, and draw their frontier
	$(if $(BETA),$(error BETA is one value: name those of the sweep in BETAS='0.05 0.1'))
	@set -fx; "$(PY)" -m dpo_lightning sweep --config configs/dpo.yaml --over model.loss.beta \
		$${BETAS:-0.01 0.05 0.1 0.2 0.5} --output_dir="$${OUT:-outputs/sweep-beta}" --evaluate "--max_new_tokens 64" \
		$${MODEL:+--model.policy.path="$$MODEL"} $${DATA:+--data.train="$$DATA"} \
		$${LR:+--model.learning_rate="$$LR"} $${EPOCHS:+--trainer.max_epochs="$$EPOCHS"} \
		$(if $(DATA)$(EPOCHS),--trainer.max_steps=-1,--trainer.max_steps=24 --data.limit_rows=96) \
		--trainer.limit_val_batches=0 $(ARGS)

infer: setup ## answer one INSTRUCTION with MODEL
	$(if $(INSTRUCTION),,$(error say what to ask: make infer INSTRUCTION='...'))
	@set -x; "$(PY)" -m dpo_lightning infer --model="$${MODEL:-outputs/dpo/final_model}" --instruction="$$INSTRUCTION" $(ARGS)

tensorboard: setup ## show the curves of all runs, on this machine only
	"$(PY)" -m tensorboard.main --logdir outputs --host 127.0.0.1 --port "$(PORT)"

# What the tests of the set-up begin with.
$(OLDEST_PIP): requirements/oldest-pip.lock | setup-dev
	rm -rf "$@" "$@.new"
	"$(PY)" -m pip download --quiet --no-deps --require-hashes --only-binary :all: -r $< --dest "$@.new"
	mv "$@.new" "$@"

# The names of temporary folders are short, as some tests look for whole paths in messages that are cut; they stay where
# a test failed.
test: setup-dev $(OLDEST_PIP) ## run all tests, or those of ARGS
	"$(PY)" -m dpo_lightning fetch-model
	$(if $(ARGS),"$(PY)" -m pytest $(ARGS),@folder=$$(mktemp -d /tmp/XXXX) && set -x && \
		"$(PY)" -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		--basetemp "$$folder" $(COVERAGE) && rm -rf "$$folder")

# Apart from `test`, as it makes Python code a third slower.
coverage: COVERAGE = --cov --cov-report=term
coverage: test ## run all tests and hold the coverage of statements at 90 %

lint: setup-dev ## check style, format and types
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m mypy

# Each script prints how many of its cases came out right; ARGS narrows all of them.
campaign: setup-dev ## kill, stop and attack runs many times over, for hours: tests/reliability/campaign_*.py
	@set -ex; for script in tests/reliability/campaign_*.py; do "$(PY)" "$$script" $(ARGS); done

gpu-check: setup-dev ## check this package on a GPU in ten minutes; ARGS=--cpu for a trial without one
	"$(PY)" -m benchmarks gpu $(ARGS)

# Their further variables (IMAGE, SIF, WHEELS, PIP_CONF, CA_BUNDLE) go through the environment.
image: ## build the container image of TORCH (cpu or cuda) on BASE: docs/containers.md
	@BASE="$(BASE)" ENGINE="$(ENGINE)" TORCH="$(TORCH)" containers/build.sh image

sif: ## make an Apptainer file of that image
	@ENGINE="$(ENGINE)" TORCH="$(TORCH)" containers/build.sh sif

lock: ## write the locks anew; ARGS=--upgrade takes the newest versions
	requirements/relock.sh $(ARGS)

clean: ## remove what tools left behind; runs, models and VENV stay
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -not -path './models/*' -not -path './outputs/*' -prune -exec rm -rf {} +
