# On a fresh machine (Python 3.11 to 3.13 and make, nothing else): `make train` or `make test`.
# ARGS is handed on:  make train ARGS="env.n=6 seed=1"   make test ARGS="tests/test_mdp.py -x"

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTHON ?=
ARGS ?=
WORKERS ?= 2
# One thread a worker: on small tensors more threads only wait for each other.
TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS)

.PHONY: help setup train test check bench coverage audit versions picture clean

help:
	@echo "make train   set up, then run the default experiment (ARGS=... are Hydra overrides)"
	@echo "make test    set up, then run the unit tests"
	@echo "make check   set up, then ruff, pyright and the tests marked slow"
	@echo "make bench   set up, then the benchmarks"
	@echo "make coverage the unit tests with a report of lines; rooms of mathematics must reach 90 %"
	@echo "make audit   known vulnerabilities of the pinned dependencies (asks an online service)"
	@echo "make versions the unit tests on the lowest and highest versions that pyproject.toml admits"
	@echo "make picture the default run, drawn for the README"
	@echo "make setup   create $(VENV) with the pins of constraints.txt"
	@echo "make clean   remove $(VENV), caches and built packages; runs/ stays"

setup: $(STAMP)

# The stamp is newer than what it was made from, so a second call does nothing.
$(STAMP): pyproject.toml constraints.txt
	@found=; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
			>/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "torchloc needs Python 3.11, 3.12 or 3.13 and found none (looked for:" \
			"$(or $(PYTHON),python3 python3.13 python3.12 python3.11 python))." \
			"Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		echo "Creating $(VENV) with $$($$found --version)"; \
		$$found -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "Installing torchloc with the pins of constraints.txt (some minutes, once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

train: $(STAMP)
	$(PY) -m torchloc train $(ARGS)

test: $(STAMP)
	$(TESTS) $(ARGS)

check: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m pyright
	$(TESTS) -m "slow and not alone" $(ARGS)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "slow and alone" $(ARGS)

bench: $(STAMP)
	$(PY) -m pytest -q -s -m benchmark $(ARGS)

# Rooms of mathematics: a file or a folder each.
ROOMS := mdp graphs policy lipschitz sensitivity coupling closed_loop closed_counts spectral certificate \
	contraction evaluation improvement locality schedules
comma := ,
empty :=

coverage: $(STAMP)
	$(TESTS) --cov=torchloc --cov-report= $(ARGS)
	$(PY) -m coverage report --skip-covered
	$(PY) -m coverage report --skip-covered --fail-under=90 \
		--include="$(subst $(empty) ,$(comma),$(foreach room,$(ROOMS),torchloc/$(room).py torchloc/$(room)/*))"

audit: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[upkeep]"
	@$(PY) -m pip_audit --strict --disable-pip --no-deps -r constraints.txt || { \
		echo "make audit: pip-audit asks the advisory service of PyPI for every pin; behind a mirror that" \
			"serves packages alone it finds no dependency, and without a network it cannot connect:" \
			"neither says that there is no vulnerability" >&2; \
		exit 1; \
	}

# PYTHON names the interpreter of the scratch environments; lowest bounds need a 3.11.
versions:
	WORKERS=$(WORKERS) bash tests/versions.sh both $(or $(PYTHON),python3.11) $(ARGS)

picture: $(STAMP)
	$(PY) -m torchloc train name=picture
	$(PY) -m torchloc.study "$$(ls -d runs/picture/* | tail -n 1)" .github/run.png

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
	find torchloc tests -name __pycache__ -type d -prune -exec rm -rf {} +
