"""The files of a package: tokenizer in both forms, sample image, golden record, manifest; and the staging folder."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaTokenizer

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.checkpoint.images import CLIP_MEAN, CLIP_STD, Images
from llava_export.checkpoint.tokenizer import open_tokenizer
from llava_export.errors import CheckpointError
from llava_export.pte.golden import GoldenRecord
from llava_export.pte.package.image import write_image
from llava_export.pte.package.manifest import file_record
from llava_export.pte.package.tokenizer import write_tokenizer
from llava_runner.contract import FileRecord
from llava_runner.errors import PackageError
from llava_runner.tokenizer import Tokenizer
from llava_runner.tokenizer_file import load_tokenizer
from tests.checkpoints import TINY_LLAVA

ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz     ABCDEFGHIJ0123456789.,:;!?'\"-\n\t",
    "äöüßéèçñøåœ ÀÉÎÕÜ ąčęėįšųūž",
    "是在有人我他这为之大来以个中上们",
    "🙂🚀👩‍👩‍👧‍👦🇺🇳\u0301\u200d\u00a0\u2028\x00\x7f▁",
    "абвгдежз אבגד ابتث कखग ไทย",
)

WORDS = ("A", "chat", "USER:", "ASSISTANT:", "What is", "image?", "circle", "</s>", "<s>", "<unk>", "<0x0A>", "<image>")


def random_strings(count: int) -> list[str]:
    """Return texts of characters from several alphabets and words that tokenizers treat in a special way."""
    generator = random.Random(0)
    strings = []
    for _ in range(count):
        pieces = []
        for _ in range(generator.randrange(8)):
            if generator.random() < 0.3:
                pieces.append(generator.choice(WORDS) + generator.choice(["", " ", "  "]))
            else:
                pieces.append("".join(generator.choices(generator.choice(ALPHABETS), k=generator.randrange(6))))
        strings.append("".join(pieces))
    return strings


def write(checkpoint: Path, folder: Path) -> None:
    """Write the files of the tokenizer in a checkpoint's folder."""
    write_tokenizer(open_tokenizer(checkpoint, vocab_size=576, chunks_are_texts=False), folder)


def read(path: Path) -> Tokenizer:
    """Open a tokenizer that is SentencePiece's."""
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def test_tokenizer_bin_and_model_agree_on_random_strings(tmp_path):
    write(TINY_LLAVA, tmp_path)
    model, binary = (read(tmp_path / name) for name in ("tokenizer.model", "tokenizer.bin"))
    assert (model.vocab_size, model.bos_id, model.eos_id) == (binary.vocab_size, binary.bos_id, binary.eos_id)
    for text in random_strings(5000):
        assert model.encode(text) == binary.encode(text), repr(text)


def test_a_tokenizer_json_gives_the_same_tokens(tmp_path):
    checkpoint, package = tmp_path / "checkpoint", tmp_path / "package"
    package.mkdir()
    LlamaTokenizer.from_pretrained(TINY_LLAVA).save_pretrained(checkpoint)
    (checkpoint / "tokenizer.model").unlink(missing_ok=True)
    assert (checkpoint / "tokenizer.json").is_file()
    write(checkpoint, package)
    original = read(TINY_LLAVA / "tokenizer.model")
    for name in ("tokenizer.model", "tokenizer.bin"):
        rebuilt = read(package / name)
        assert rebuilt.vocab_size >= original.vocab_size and (rebuilt.bos_id, rebuilt.eos_id) == (1, 2)
        for text in random_strings(1000):
            assert rebuilt.encode_pieces(text) == original.encode_pieces(text), repr(text)


def test_tokenizers_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no tokenizer.model and no tokenizer.json"):
        write(tmp_path, tmp_path)
    for other, message in (
        ({"model": {"type": "WordPiece"}}, "model WordPiece .* is not supported"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "pre_tokenizer .* does not end with ByteLevel"),
        ({"model": {"type": "BPE", "byte_fallback": True}, "pre_tokenizer": {"type": "ByteLevel"}}, "byte_fallback"),
        ({}, "lacks model"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(other))
        with pytest.raises(CheckpointError, match=message):
            write(tmp_path, tmp_path)
    shutil.copy(SAMPLE_IMAGE, tmp_path / "tokenizer.model")
    package = tmp_path / "package"
    package.mkdir()
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        write(tmp_path, package)


def test_image_tensor_fits_the_models_square(tmp_path):
    write_image(SAMPLE_IMAGE, tmp_path, images=Images(CLIP_MEAN, CLIP_STD, "pad", 56, 56, "bicubic"))
    tensor = torch.load(tmp_path / "image.pt", weights_only=True)
    assert tensor.dtype == torch.uint8 and tensor.shape[0] == 3
    assert max(tensor.shape[1:]) == 56
    assert (tmp_path / "image.png").read_bytes() == SAMPLE_IMAGE.read_bytes()


def test_file_record_is_size_and_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_record(path) == FileRecord(bytes=3, sha256=digest)


def test_golden_record_survives_its_file(tmp_path):
    golden = GoldenRecord(
        image=torch.randint(0, 256, (3, 5, 6), dtype=torch.uint8),
        ids_before=torch.tensor([1, 2]),
        ids_after=torch.tensor([3]),
        features=torch.randn(4, 8).half(),
        tokens=torch.tensor([5, 6]),
        logits=torch.randn(2, 9),
        prompt="USER: <image>\n?",
        agreed="",
    )
    (tmp_path / "golden").write_bytes(golden.to_bytes())
    loaded = GoldenRecord.load(tmp_path / "golden")
    assert all(np.array_equal(getattr(loaded, name), getattr(golden, name)) for name in vars(golden))


@pytest.mark.parametrize("content", [b"", b"not a record", b"\x00" * 64])
def test_damaged_golden_records_are_refused(content, tmp_path):
    (tmp_path / "golden").write_bytes(content)
    with pytest.raises(PackageError, match="not a golden record, or damaged"):
        GoldenRecord.load(tmp_path / "golden")
