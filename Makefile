# Each target works by itself on a machine with Python 3.10 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint clean

demo: $(READY)  ## export the built-in model, prove it, ask it about the sample picture
	$(BIN)/python -m llava_export.export --model tiny-llava --output-dir demo --pte-name llava.pte --with-artifacts
	$(BIN)/test_pte demo/llava.pte
	@echo && echo "Q: What is in the image?  (demo/image.png)"
	$(BIN)/llava-run --model_path=demo/llava.pte --tokenizer_path=demo/tokenizer.bin --image_path=demo/image.png \
		--prompt="What is in the image?" --seq_len=768 --temperature=0

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo build cmake-out *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(READY): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@
