"""Files that somebody made to do harm: both runners refuse the same ones, in one line, soon and with little memory."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llava_runner.contract import ModelCard
from llava_runner.errors import ImageError, PackageError, PromptError, UserError
from llava_runner.image import prepare_image
from llava_runner.prompt import chunk_text, prompt_chunks
from llava_runner.tokenizer_file import load_tokenizer
from tests.runner.fake_program import make_card

PIXELS = torch.arange(3 * 20 * 30, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(3, 20, 30)
MEAN = (0.48145466, 0.4578275, 0.40821073)


@pytest.fixture
def parts(native_build) -> Callable[..., bytes | str]:
    """A function that runs one part of the C++ runner: it returns the output, or the one line of an error."""

    def call(*arguments: object, text: bytes = b"") -> bytes | str:
        command = [native_build / "build/parts", *map(str, arguments)]
        done = subprocess.run(command, input=text, capture_output=True, timeout=60)
        if done.returncode == 0:
            return done.stdout
        error = done.stderr.decode()
        assert done.returncode == 2 and error.startswith("error: ") and error.count("\n") == 1, error
        return error.removeprefix("error: ").strip()

    return call


def outcome(call: Callable[[], bytes]) -> bytes | str:
    """Return what a call returns, or the message of its ``UserError``."""
    try:
        return call()
    except UserError as error:
        return str(error)


def saved(value: object, **options: Any) -> bytes:
    """Return the file that ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def entries() -> list[tuple[str, bytes]]:
    """Return the names and contents of the files in a tensor's archive."""
    with zipfile.ZipFile(io.BytesIO(saved(PIXELS))) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def with_file(end: str, content: bytes) -> list[tuple[str, bytes]]:
    """Return a tensor's files with another content of the one whose name ends so."""
    return [(name, content if name.endswith(end) else old) for name, old in entries()]


def zipped(files: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED, *, zip64: bool = False) -> bytes:
    """Return an archive with these files."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # of two files with one name
        for name, content in files:
            with archive.open(name, "w", force_zip64=zip64) as entry:
                entry.write(content)
    return file.getvalue()


PLAIN, PICKLE = saved(PIXELS), entries()[0][1]
TENSORS = {
    "plain": PLAIN,
    "a slice of more images": saved(torch.stack([PIXELS, PIXELS.flip(1)])[1]),
    "rows of pixels": saved(PIXELS.permute(1, 2, 0).contiguous().permute(2, 0, 1)),
    "one value for all pixels": saved(torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, 20, 30)),
    "another zip writer": zipped(entries()),
    "zip64": zipped(entries(), zip64=True),
    "big-endian": zipped(with_file("byteorder", b"big")),
    "another file inside": zipped([*entries(), ("archive/note", b"text")]),
}
HOSTILE_TENSORS = {
    "deflated": zipped(entries(), zipfile.ZIP_DEFLATED),
    "3 MB of zeros deflated": zipped(with_file("data/0", bytes(3 << 20)), zipfile.ZIP_DEFLATED),
    "two files of one name": zipped([*entries(), entries()[4]]),
    "bytes before": b"#!/bin/sh\n" + PLAIN,
    "bytes behind": PLAIN + bytes(22),
    "a comment": PLAIN[:-2] + b"\1\0c",
    "two directories that differ": PLAIN.replace(struct.pack("<QQ", 7, 7), struct.pack("<QQ", 6, 6)),
    "no folder": zipped([(name.removeprefix("archive/"), content) for name, content in entries()]),
    "two folders": zipped([(name.replace("archive/d", "other/d"), content) for name, content in entries()]),
    "fewer bytes than said": zipped(with_file("data/0", bytes(1799))),
    "more bytes than said": zipped(with_file("data/0", bytes(1801))),
    "tuples in each other": zipped(with_file("data.pkl", b"\x80\x02)" + b"\x85" * 2_000_000 + b".")),
    "a long text recalled": zipped(
        with_file("data.pkl", b"\x80\x02X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\0" + b"h\0" * 20_000 + b".")
    ),
    "3 GB of one value": saved(torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, 32768, 32768)),
    "one pixel more than any model sees": saved(torch.zeros(3, 2049, 2, dtype=torch.uint8)),
    "rows backward": zipped(
        with_file("data.pkl", PICKLE.replace(b"M\x58\x02K\x1eK\1", b"M\x58\x02J\xff\xff\xff\xffK\1"))
    ),
    "pixels beyond the end": zipped(with_file("data.pkl", PICKLE.replace(b"QK\0", b"QK\1"))),
    "floats": saved(PIXELS.float()),
    "no gradients to have": saved(PIXELS.float().requires_grad_()),
    "bfloat16": saved(PIXELS.bfloat16()),
    "sparse": saved(PIXELS.to_sparse()),
    "meta": saved(PIXELS.to("meta")),
    "a dict": saved({"image": PIXELS}),
    "the old format": saved(PIXELS, _use_new_zipfile_serialization=False),
    "another protocol": saved(PIXELS, pickle_protocol=4),
    "no height": saved(PIXELS[:, :0]),
    "one row": saved(PIXELS[:, :1]),
    "empty": b"",
}


def test_tensor_files_are_decided_alike(parts, tmp_path):
    path = tmp_path / "image.pt"
    for name, content in {**TENSORS, **HOSTILE_TENSORS}.items():
        path.write_bytes(content)
        expected = outcome(
            lambda: prepare_image(path, image_size=2048, image_mean=MEAN, image_aspect_ratio="pad").tobytes()
        )
        assert isinstance(expected, str) == (name in HOSTILE_TENSORS), (name, expected)
        assert parts("image", path, 2048, "pad") == expected, name


def test_damaged_tensor_files_are_decided_alike(parts, tmp_path):
    path, generator, refused = tmp_path / "image.pt", np.random.default_rng(0), 0
    for index in range(60):
        damaged = bytearray(PLAIN)
        begin, end = ((30, 300), (len(PLAIN) - 700, len(PLAIN)))[index % 2]  # the pickle; the directory
        damaged[generator.integers(begin, end)] = (0, 1, 255, generator.integers(256))[generator.integers(4)]
        path.write_bytes(damaged)
        expected = outcome(
            lambda: prepare_image(path, image_size=2048, image_mean=MEAN, image_aspect_ratio="pad").tobytes()
        )
        assert parts("image", path, 2048, "pad") == expected, index
        refused += isinstance(expected, str)
    assert 10 < refused < 60


CARD = json.loads(make_card(vocab_size=300).to_json())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_size": 60000},
        {"image_size": 1},
        {"image_size": 28.0},
        {"image_size": True},
        {"image_size": "28"},
        {"image_size": 10**30},
        {"num_image_tokens": -1},
        {"hidden_size": 2**31},
        {"vocab_size": -1},
        {"vocab_size": 2**64},
        {"tokenizer_vocab_size": 0},
        {"tokenizer_vocab_size": 301},
        {"bos_id": -1},
        {"bos_id": 300},
        {"eos_ids": []},
        {"eos_ids": [300]},
        {"eos_ids": [2] * 65},
        {"eos_ids": [[2]]},
        {"max_seq_len": 0},
        {"max_seq_len": 129},
        {"max_context_len": 2**25},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": [0.5, 0.5, -1e-9]},
        {"image_mean": [0.5, 0.5, 1e300]},
        {"image_std": ["a", "b", "c"]},
        {"image_std": [0.2, 0, 0.2]},
        {"image_std": [0.2, 10.5, 0.2]},
        {"image_aspect_ratio": "square"},
        {"image_resize": 27},
        {"image_resize": 2049},
        {"image_resample": "area"},
        {"image_resample": 3},
        {"image_aspect_ratio": None},
        {"prompt": {"system": "", "user": "", "assistant": 5, "image_separator": ""}},
    ],
    ids=str,
)
def test_model_cards_are_decided_alike(changes, parts):
    text = json.dumps({**CARD, **changes})
    expected = outcome(lambda: b"%d" % ModelCard.from_json(text).image_size)
    found = parts("card", text=text.encode())
    assert isinstance(expected, str) == isinstance(found, str) == bool(changes)
    if str(expected).startswith("the model card: "):  # a wrong type may be told in other words
        assert found == expected


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"schema":' + "[" * 10**5, '{"schema":' * 10**5, "", "null", "[1]", "\xff"]
)
def test_a_model_card_that_is_no_card_is_refused(text, parts):
    refusal = parts("card", text=text.encode("latin-1"))
    assert isinstance(refusal, str) and refusal.startswith("the model card")


@pytest.mark.parametrize("depth", [63, 64])
def test_a_model_card_has_at_most_64_levels(depth, parts):
    found = parts(
        "card", text=json.dumps({**CARD, "recipe": "DEEP"}).replace('"DEEP"', "[" * depth + "]" * depth).encode()
    )
    assert found == (b"28" if depth == 63 else "the model card is not JSON that can be read: it nests too deeply")


def test_deep_lists_where_a_schema_belongs_are_refused(parts):
    text = json.dumps({**CARD, "schema": "S"}).replace('"S"', "[" * 30 + "]" * 30)
    assert "has schema None" in parts("card", text=text.encode())


def bin_file(pieces: list[tuple[bytes, float]], count: int | None = None) -> bytes:
    """Return a tokenizer.bin with these pieces and their scores. BOS is piece 1, and EOS piece 2."""
    head = struct.pack("<IIII", len(pieces) if count is None else count, 1, 2, 9)
    return head + b"".join(struct.pack("<fI", score, len(text)) + text for text, score in pieces)


CONTROL = [(b"<unk>", 0.0), (b"<s>", 0.0), (b"</s>", 0.0)]
BYTES = [(b"<0x%02X>" % value, 0.0) for value in range(256)]
HOSTILE_TOKENIZERS = {
    "more pieces than bytes": bin_file(CONTROL + BYTES, count=2**32 - 1),
    "more pieces than any model has": bin_file(CONTROL + BYTES, count=2**20 + 1),
    "a long piece": bin_file([*CONTROL, *BYTES, (b"a" * 1025, -1.0)]),
    "an empty piece": bin_file([*CONTROL, *BYTES, (b"", -1.0)]),
    "a zero byte": bin_file([*CONTROL, *BYTES, (b"a\0b", -1.0)]),
    "a piece twice": bin_file([*CONTROL, *BYTES, (b"a", -1.0), (b"a", -2.0)]),
    "a score that is none": bin_file([*CONTROL, *BYTES, (b"a", float("nan"))]),
    "100 of 256 bytes": bin_file(CONTROL + BYTES[:100]),
    "not Unicode": bin_file([*CONTROL, *BYTES, (b"\xff", -1.0)]),
    "a length beyond the end": bin_file(CONTROL + BYTES)[:-10] + b"\xff\xff\xff\xff<0xFF>",
    "no pieces": bin_file([]),
    "empty": b"",
}


def test_tokenizers_are_refused_alike(parts, tmp_path):
    path = tmp_path / "tokenizer.bin"
    for name, content in HOSTILE_TOKENIZERS.items():
        path.write_bytes(content)
        refusal = f"{path} is not a tokenizer that can be read"
        assert str(parts("encode", path, text=b"text\0")).startswith(refusal), name
        with pytest.raises(PackageError, match="is not a tokenizer that can be read"):
            load_tokenizer(path)


def test_vocabularies_of_many_added_pieces_are_fast_and_alike(parts, tmp_path):
    """The longest added piece is found wherever one begins, among 100,000 of them, and a space need not be a piece."""
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(bin_file([*CONTROL, *BYTES, *((b"%d" % number, 0.0) for number in range(100_000))]))
    text = "12345 99999100000 " * 5000
    expected = " ".join(map(str, load_tokenizer(path).encode(text)))
    assert parts("encode", path, text=text.encode() + b"\0") == (expected + " \n").encode()


def test_prompts_of_any_length_are_read_or_refused(parts, tiny_package):
    path = tiny_package.folder / "tokenizer.bin"
    tokenizer = load_tokenizer(path)
    text = "🙂 aaaa <image>" * 10_000 + " " * 500_000
    expected = " ".join(map(str, tokenizer.encode(text)))
    assert parts("encode", path, text=text.encode() + b"\0") == (expected + " \n").encode()
    message = "the prompt has 10000000 bytes; at most 1048576 are read"
    assert parts("encode", path, text=b"a" * 10_000_000 + b"\0") == message
    (chunk,) = prompt_chunks("a" * 10_000_000, template=make_card(vocab_size=300).prompt, num_images=0)
    with pytest.raises(PromptError, match="at most 1048576 are read"):
        tokenizer.encode(chunk_text(chunk))


def load_tensor(path: Path) -> object:
    """Read an image tensor. Raises ``ImageError``."""
    return prepare_image(path, image_size=28, image_mean=MEAN, image_aspect_ratio="pad")


def test_sparse_files_of_many_gigabytes_are_refused(parts, tmp_path):
    for name, part in (("image.pt", "image"), ("image.png", "image"), ("tokenizer.bin", "encode")):
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
            file.truncate(1 << 36)
        assert str(parts(part, path, 28, "pad")).startswith(f"{path} is too large: ")
    with pytest.raises(ImageError, match="is too large"):
        load_tensor(tmp_path / "image.pt")
