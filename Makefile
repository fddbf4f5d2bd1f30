# Two commands for a fresh machine: `make generate` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt setup.py pyproject.toml

# The development environment pins torch's CPU build; the package itself takes any torch >= 2.11.
TORCH ?= torch==2.13.0
# A question of your own: make generate PROMPT="..."
PROMPT ?=

.PHONY: generate test lint format clean

generate: $(STAMP)
	$(BIN)/python -m cascade_engine.generate --compare $(if $(PROMPT),"$(PROMPT)") </dev/null

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format -i

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q "$(TORCH)"

$(STAMP): $(BIN)/python $(SOURCES)
	$(BIN)/pip install -q -e ".[test,dev]"
	touch $(STAMP)

clean:
	rm -rf build cascade_engine/_C*.so $(STAMP)
