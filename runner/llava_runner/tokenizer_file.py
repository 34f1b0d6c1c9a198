"""Opens the file of a tokenizer, whatever its kind is."""

from __future__ import annotations

from pathlib import Path

from llava_runner.bpe_tokenizer import BpeTokenizer
from llava_runner.contract import TOKENIZER_JSON
from llava_runner.errors import PackageError
from llava_runner.tokenizer import TOKENIZER_AT_MOST, Tokenizer, model_from_bin

AnyTokenizer = Tokenizer | BpeTokenizer
JSON_BEGINS = b"{"


def load_tokenizer(path: str | Path) -> AnyTokenizer:
    """Read a tokenizer: a JSON object as ``tokenizer.json``, ``*.bin`` in llama2c's layout, any other file as a
    SentencePiece model.

    Raises ``PackageError`` if the file is missing, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise PackageError(f"{path} is not a tokenizer file" if path.exists() else f"{path} does not exist")
    with path.open("rb") as file:
        content = file.read(TOKENIZER_AT_MOST + 1)
    if len(content) > TOKENIZER_AT_MOST:
        raise PackageError(f"{path} is too large: at most {TOKENIZER_AT_MOST} bytes are read")
    # A tokenizer.bin may begin with the same byte: that of its number of tokens, whose fourth one is zero.
    if content.startswith(JSON_BEGINS) and b"\0" not in content[:4]:
        return BpeTokenizer.from_json(content, what=str(path))
    try:
        if path.suffix == ".bin":
            content = model_from_bin(content).SerializeToString()
        return Tokenizer.from_model(content)
    except ValueError as error:
        raise PackageError(
            f"{path} is not a tokenizer that can be read (tokenizer.model of SentencePiece, tokenizer.bin or "
            f"{TOKENIZER_JSON}): {error}"
        ) from error
