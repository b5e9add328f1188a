# make train   the environment, then FPTT on real data         make test    the environment, then all fast tests
# make check   format, lint, types, layers                     make faults  every planted fault must turn the tests red
# make docs    the documentation as a site, in site/            make setup   the environment alone
# make build   the packages in dist/, checked

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: setup train test test-all check faults docs build clean

train: $(STAMP)
	@$(BIN)/fptt train --task digits --method fptt --seed 0 --out out/make-train --overwrite

test: $(STAMP)
	@$(BIN)/pytest -q -n 2 --dist loadgroup

test-all: $(STAMP)
	@$(BIN)/pytest -q -n 2 --dist loadgroup -m ""

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

faults: $(STAMP)
	@$(BIN)/python tests/faults.py

docs: $(STAMP)
	$(BIN)/python docs/build.py

build: $(STAMP)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --group release
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

setup: $(STAMP)

# stale when the dependencies have changed
$(STAMP): pyproject.toml constraints.txt
	@echo "making the environment in .venv (a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check 'pip>=25.1'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[experiments,river,sklearn]' --group development
	@touch $@

clean:
	rm -rf .venv out site dist
