# Each target works by itself on a machine with Python 3.10 or newer and make.
PYTHON ?= python3
MINUTES ?= 10
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test fuzz lint format docs wheels clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-8s %s\n", $$1, $$2 }'

demo: $(READY)  ## export the built-in model, verify it, ask it about the sample image
	$(BIN)/python -m llava_export.export --model tiny-llava --output-dir demo --pte-name llava.pte --with-artifacts
	$(BIN)/llava verify demo
	@echo && echo "Q: What is in the image?  (demo/image.png)"
	$(BIN)/llava run demo --image demo/image.png --prompt "What is in the image?"

test: $(READY)  ## run all tests in WORKERS=2 processes (about half an hour on two cores)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

fuzz: $(READY)  ## feed damaged input to every parser for MINUTES=10 (takes clang; CONTRIBUTING.md says more)
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

lint: $(READY)  ## check format, types, scripts, and the generated pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.h' | xargs -r $(BIN)/clang-format --dry-run -Werror
	git ls-files '*.sh' .ci/run | xargs -r $(BIN)/shellcheck
	$(BIN)/python -m docs.generate --check

format: $(READY)  ## format Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cpp' '*.h' | xargs -r $(BIN)/clang-format -i

docs: $(READY)  ## write the generated pages: command reference, benchmarks, recipes, README's table
	$(BIN)/python -m docs.generate

wheels: $(READY)  ## build both distributions into dist/
	$(BIN)/python -m build --outdir dist runner
	$(BIN)/python -m build --outdir dist .

clean:  ## remove what the other targets made
	rm -rf .venv demo build dist cmake-out *.egg-info runner/*.egg-info runner/build .pytest_cache .mypy_cache .ruff_cache

$(READY): requirements.txt pyproject.toml runner/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --editable .
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --editable ./runner
	touch $@
