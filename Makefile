# The workbook's interface. `make help` lists it. Nothing but Python 3.11 to 3.13 and make is needed beforehand.

ENVIRONMENT := mechanistic-interpretability-workbook
PYTHON ?= python3
CHAPTER ?=
SEEDS ?=
SETTING ?=
ONLY ?=
PORT ?=
BROWSER ?= yes
MODEL ?=
DTYPE ?=
DEVICE ?=
MODELS ?=
PROFILE ?=
NDIF ?=
export NDIF

# Inside our conda environment its Python is used as it is; everywhere else a .venv of our own.
ifeq ($(CONDA_DEFAULT_ENV),$(ENVIRONMENT))
PY := python
STAMP := place
else
PY := .venv/bin/python
STAMP := .venv/.installed
endif

# What a shell brings along for other Pythons stays outside.
unexport PYTHONPATH PYTHONHOME PYTHONOPTIMIZE PYTHONWARNINGS PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE := 1

RUN := $(PY) -m utils.workbook
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1

.PHONY: help setup place FORCE lab start update progress test test-full lint unit drift nbval mutants portable random-control \
        notebooks execute spread bench report models models-smoke models-report ten-minutes gpu ndif ndif-test clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-22s %s\n", $$1, $$2}'

# ---------------------------------------------------------------- set-up

setup: $(STAMP)  ## make .venv and install everything (all other commands do it where needed)
	@echo "Everything is installed."

# Asked at every command: nothing is to be done where folder and requirements are as they were, and Python runs.
.venv/.installed: FORCE
	@{ pwd -P; cat requirements.txt; } | cmp -s - $@ && $(PY) -c pass 2>/dev/null || \
	    { command -v $(PYTHON) >/dev/null && $(PYTHON) utils/workbook/environment.py; } || \
	    { command -v $(PYTHON) >/dev/null || echo "There is no $(PYTHON) here: install Python 3.11, 3.12 or 3.13." >&2; exit 1; }

place: FORCE
	@$(PY) utils/workbook/environment.py place

FORCE:

# ---------------------------------------------------------------- for learners

lab: $(STAMP)  ## open JupyterLab on your copies in work/ (PORT=8888, BROWSER=no)
	@$(RUN) lab $(if $(PORT),--port '$(PORT)') $(if $(filter no,$(BROWSER)),--no-browser)

start: $(STAMP)  ## copy the chapters into work/ where no copy stands
	@$(RUN) start

update: $(STAMP)  ## bring your copies up to date; your answers and cells are kept (CHAPTER=01)
	@$(RUN) update $(CHAPTER)

progress: $(STAMP)  ## show which exercises are solved
	@$(RUN) progress

# ---------------------------------------------------------------- for instructors and CI

test: $(STAMP)  ## everything, a process a core: lint, generation, unit tests, the checks' proof, solved notebooks
	@$(RUN) test || { echo "make test failed: the lines above name test, or notebook, cell and value." >&2; exit 1; }
	@echo "All tests passed."

test-full: $(STAMP)  ## what is too long for every change; what passed is not run again (NDIF=no)
	@$(RUN) test-full || { echo "make test-full failed: the lines above say what." >&2; exit 1; }

lint: $(STAMP)  ## ruff
	@$(PY) -m ruff check && $(PY) -m ruff format --check --quiet utils tests || \
	    { echo "make lint failed: '$(PY) -m ruff check --fix' and 'ruff format utils tests' mend most of it." >&2; exit 1; }

drift: $(STAMP)  ## are the notebooks as their sources say?
	@$(RUN) drift || { echo "make drift failed." >&2; exit 1; }

unit: $(STAMP)  ## unit tests and the proof of the checks
	@$(RUN) unit || { echo "make unit failed." >&2; exit 1; }

nbval: $(STAMP)  ## run the solved notebooks and compare every output (CHAPTER=01 PROFILE=hub)
	@$(RUN) nbval $(CHAPTER) $(if $(PROFILE),--profile '$(PROFILE)') || { echo "make nbval failed: the lines above name cell and value." >&2; exit 1; }

mutants: $(STAMP)  ## make wrong versions of every solution by rule: the checks must reject them (CHAPTER=01)
	@$(RUN) mutants $(CHAPTER) || { echo "make mutants failed: too many of the mutants above were accepted." >&2; exit 1; }

portable: $(STAMP)  ## run them as other machines would: rounding noise, code paths, threads (CHAPTER=01 SEEDS=3 SETTING=noise-1)
	@$(RUN) portable $(CHAPTER) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SETTING),--setting $(SETTING)) || \
	    { echo "make portable failed: the lines above name setting, cell and value." >&2; exit 1; }

random-control: $(STAMP)  ## run the chapters on models that have learned nothing, and list the claims that hold (CHAPTER=01 SEEDS=3)
	@$(RUN) random-control $(CHAPTER) $(if $(SEEDS),--seeds $(SEEDS)) || \
	    { echo "make random-control failed: the lines above name chapter, cell and claim." >&2; exit 1; }

# ---------------------------------------------------------------- for authors

notebooks: $(STAMP)  ## write chapters/ and solutions/ from the sources
	@$(RUN) build $(CHAPTER)

execute: $(STAMP)  ## run solved notebooks and record their outputs as references (CHAPTER=01 ONLY=changed PROFILE=hub)
	@$(RUN) execute $(CHAPTER) $(if $(PROFILE),--profile '$(PROFILE)') $(if $(filter changed,$(ONLY)),--changed)

spread: $(STAMP)  ## say how far a chapter's numbers move from machine to machine (CHAPTER=01 SEEDS=8)
	@$(RUN) spread $(CHAPTER) $(if $(SEEDS),--seeds $(SEEDS))

bench: $(STAMP)  ## benchmarks, each beside what it is measured against
	@for file in tests/bench_*.py; do echo "== $$file"; $(OFFLINE) $(PY) $$file || exit 1; done

report: $(STAMP)  ## our measured figures beside the papers'
	@for file in tests/report_*.py; do echo "== $$file"; $(OFFLINE) $(PY) $$file || exit 1; done

models: $(STAMP)  ## retrain the shipped models, resumable (MODEL=pico-attn-2l)
	@$(PY) -m utils.training train $(MODEL)

models-smoke: $(STAMP)  ## train a minute-sized version and prove that the loss falls and resuming works
	@$(PY) -m utils.training smoke

models-report: $(STAMP)  ## measure the shipped models and write their cards
	@$(PY) -m utils.training report

ten-minutes: $(STAMP)  ## from a fresh clone to the first ✓ in Chromium, by what the screen shows: seconds and clicks
	@$(PY) tests/first_ten_minutes.py

# ---------------------------------------------------------------- more than one machine

gpu: $(STAMP)  ## unit tests, notebooks and checks on the GPU: minutes and memory (DEVICE=pretend MODELS=hub CHAPTER=01)
	@$(RUN) gpu $(CHAPTER) $(if $(DEVICE),--device '$(DEVICE)') $(if $(MODELS),--models '$(MODELS)') || \
	    { echo "make gpu failed: the lines above say what." >&2; exit 1; }

ndif: $(STAMP)  ## your own NDIF server on this machine, for chapter 10 (PORT=8001, DTYPE=bfloat16)
	@$(RUN) ndif $(if $(PORT),--port '$(PORT)') $(if $(DTYPE),--dtype '$(DTYPE)')

ndif-test: $(STAMP)  ## start such a server, run chapter 10 on it, compare values, requests and bytes (DTYPE=bfloat16)
	@$(RUN) ndif-test $(if $(DTYPE),--dtype '$(DTYPE)') || { echo "make ndif-test failed: the lines above say what." >&2; exit 1; }

clean:  ## remove .venv, .ndif and caches; your work/ stays
	rm -rf .venv .ndif .pytest_cache .ruff_cache .hypothesis
