"""The tokenizer of a package: SentencePiece's ``tokenizer.model``, and ``tokenizer.bin`` for runners without it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_export.checkpoint.tokenizer import sentencepiece_model
from llava_runner import contract


def write_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Write both files to ``folder``. Raises ``CheckpointError`` when the checkpoint has no SentencePiece tokenizer."""
    with _quiet_stderr():  # the libraries print a greeting there when they are loaded
        from pytorch_tokenizers.llama2c import Llama2cTokenizer

    model = folder / contract.TOKENIZER_MODEL
    model.write_bytes(sentencepiece_model(checkpoint))
    Llama2cTokenizer(str(model)).export(str(folder / contract.TOKENIZER_BIN))


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard what native code writes to stderr."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
