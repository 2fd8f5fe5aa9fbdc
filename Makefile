# Everything a user does, by name. Bare `make` lists it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-dev sft dpo kto infer tensorboard test lint gpu-check lock clean
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
LR :=
EPOCHS :=
INSTRUCTION :=
ARGS :=

# Recipes read these from the environment, so that quotes, dollars and spaces arrive as they were typed:
# `value` takes the text before make expands it.
define literally
override $(1) := $$(value $(1))
export $(1)
endef
$(foreach name,MODEL DATA OUT BETA LR EPOCHS INSTRUCTION,$(eval $(call literally,$(name))))
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
## LR: learning rate
## EPOCHS: number of epochs
## INSTRUCTION: what to ask (infer), in single quotes
## ARGS: more flags for the command, for pytest (test), for relock.sh (lock) or for the parts of gpu-check
## VENV: virtual environment (.venv)
## PYTHON: Python to make it with (python3)
## TORCH: build of torch: auto (CUDA where there is a GPU), cpu or cuda
## PORT: port of TensorBoard (6006)

setup: ## install everything into VENV from the hash-checked locks
	@$(INSTALL)

setup-dev:
	@$(INSTALL) requirements/test.lock

# The embedded model is fetched only where no other is named.
$(EMBEDDED_MODEL): | setup
	"$(PY)" -m dpo_lightning fetch-model
sft dpo kto: setup $(if $(MODEL),,$(EMBEDDED_MODEL))

sft: ## supervised fine-tuning: configs/sft.yaml
	$(if $(BETA),$(error BETA means nothing to sft: leave it out))
	@$(FIT) $(ARGS)

# The recipe's cap on the steps belongs to its example: it goes where other data or a number of epochs is named.
dpo: ## preference tuning: configs/dpo.yaml
	@$(FIT) $${BETA:+--model.loss.beta="$$BETA"} $(if $(DATA)$(EPOCHS),--trainer.max_steps=-1) $(ARGS)

kto: ## tuning on unpaired rows (an answer and a label): configs/kto.yaml
	@$(FIT) $${BETA:+--model.loss.beta="$$BETA"} $(if $(DATA)$(EPOCHS),--trainer.max_steps=-1) $(ARGS)

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

# A run that ARGS narrows has no coverage to hold.
test: setup-dev $(OLDEST_PIP) ## run all tests with coverage
	"$(PY)" -m dpo_lightning fetch-model
	"$(PY)" -m pytest $(if $(ARGS),$(ARGS),--cov --cov-report=term)

lint: setup-dev ## check style, format and types
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m mypy

gpu-check: setup-dev ## check this package on a GPU in ten minutes; ARGS=--cpu for a trial without one
	"$(PY)" -m benchmarks gpu $(ARGS)

lock: ## write the locks anew; ARGS=--upgrade takes the newest versions
	requirements/relock.sh $(ARGS)

clean: ## remove what tools left behind; runs, models and VENV stay
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -not -path './models/*' -not -path './outputs/*' -prune -exec rm -rf {} +
