# Everything sets itself up: `make demo` and `make test` work in a fresh clone with Python >= 3.10 and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.softcache-ready

.PHONY: setup demo test check bench torture dist docs-commands clean

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"softcache needs Python >= 3.10, this is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing softcache and what it needs into $(VENV) (torch is large: some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,check]'
	@touch $(STAMP)

demo: setup
	@$(BIN)/python examples/demo.py

test: setup
	@$(BIN)/python -m pytest -n 3 --dist loadfile

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

torture: setup
	@$(BIN)/python -m pytest -m torture --timeout 7200

# A source archive and a wheel in dist/, checked, and the wheel tried in an environment of its own.
dist: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dist]'
	@rm -rf dist
	@$(BIN)/python -m build
	@$(BIN)/python -m twine check --strict dist/*
	@$(BIN)/python .ci/try_wheel.py dist/*.whl

# Every command and block of Python in README.md and docs/ runs, in order; what can't run here is listed at the end.
docs-commands: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-e '.[loops,s3,test-stores,export,report,tensorboard,sweep,compress]'
	@$(BIN)/python -m pytest tests/test_pages_followed.py -m 'docs or not docs' -n 2 --dist load

bench: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
