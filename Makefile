# Every target makes .venv first where there is none, and does nothing twice. Without make (Windows): see README.md.
#   PYTHON=/path/to/python3.11   which Python makes .venv     TORCH=auto|cpu|cuda   which torch pair is installed
SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
export VENV TORCH PYTHON
export NO_ALBUMENTATIONS_UPDATE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow fuzz lab docs bench ablation pretrain prior clean

help:
	@echo "make demo       train, evaluate and draw a pose model on generated people (7 to 15 minutes on 2 CPU cores)"
	@echo "make test       everything that must hold: notebooks, tests, tree"
	@echo "make install    only the environment      make lab     JupyterLab on the notebooks"
	@echo "make test-slow  the slow tests            make fuzz    long property tests"
	@echo "make docs       the notebooks as a site   make bench   measurements    make clean   remove what can be made again"
	@echo "make ablation   what every stage gained, three seeds, generated people and photographs (hours)"
	@echo "make pretrain   the embedded weights again (hours; stopped and called again, it goes on)"
	@echo "make prior      the embedded pose prior again (minutes)"

# The Python of .venv where there is one, else $PYTHON, else the newest that starts; an old one is still called: it says what is missing.
install:
	@if [ -x "$(BIN)/python" ] && "$(BIN)/python" -c "" 2>/dev/null; then py="$(BIN)/python"; \
	elif [ -n "$$PYTHON" ]; then py="$$PYTHON"; \
	  "$$py" -c "" 2>/dev/null || { echo "posellm: PYTHON=$$py does not start" >&2; exit 2; }; \
	else py=""; \
	  for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	    if "$$p" -c "import sys; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1; then py="$$p"; break; fi; done; \
	  [ -n "$$py" ] || for p in python3 python; do "$$p" -c "" >/dev/null 2>&1 && { py="$$p"; break; }; done; \
	fi; \
	[ -n "$$py" ] || { echo "posellm: no Python found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	"$$py" tools/setup_env.py

demo: install
	@"$(BIN)/python" tools/demo.py

test: install
	@"$(BIN)/python" tools/run_tests.py

test-slow: install
	@"$(BIN)/python" -m pytest tests -q -m slow

fuzz: install
	@HYPOTHESIS_PROFILE=fuzz "$(BIN)/python" -m pytest tests -q -m "fuzz or hypothesis"

lab: install
	@"$(BIN)/python" -m jupyterlab --notebook-dir=. nbs

docs: install
	@"$(BIN)/python" -m posellm.app.docs

ablation: install
	@"$(BIN)/python" bench/ablation.py $(ARGS)

bench: install
	@"$(BIN)/python" bench/run.py

# ARGS='--steps 30000 --workers 1 --judge PATH/coco_subset'
pretrain: install
	@"$(BIN)/python" -m posellm.train.pretrain $(ARGS)

prior: install
	@"$(BIN)/python" tools/train_prior.py $(ARGS)

clean:
	@rm -rf _proc _docs build dist posellm.egg-info .pytest_cache .ruff_cache .hypothesis out*.ipynb
	@find . -path "./$(VENV)" -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
