"""What the fuzzers of the C++ runner begin with: small inputs of every kind, by the names of the fuzzers."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava_runner.contract import FileRecord, Manifest
from tests.bpe_boundaries import NAMES, boundary_tokenizer
from tests.runner.fake_program import make_card
from tests.runner.tiny_program import build_pte

PROMPTS = (
    "What is in the image?",
    "USER: <image>\nWhat is this? ASSISTANT:",
    "<image><image>",
    "aäää 🙂 \u2581 is an\x00\xff",
    " \t\n",
)


def write_corpus(folder: Path) -> None:
    """Write the inputs: a folder in ``folder`` for each fuzzer, and a file in it for each input."""
    card = make_card(vocab_size=64)
    manifest = Manifest(
        "llava.pte", {}, card, {"torch": "2"}, {"llava.pte": FileRecord(7, "0" * 64)}, "0" * 64
    ).to_json()
    inputs = {
        "image": images(),
        "tensor": tensors(),
        "tokenizer": [tokenizer(), *byte_level_tokenizers()],
        "prompt": [b"%c" % choice + prompt.encode() for prompt in PROMPTS for choice in (0, 1, 3, 15)],
        "byte_level": [b"%c" % choice + prompt.encode() for prompt in PROMPTS for choice in (0, 1, 18, 27)],
        "card": [card.to_json().encode()],
        "program": [build_pte(card), segments()],
        "manifest": [manifest.encode(), b'{"files": {"llava.pte": {}}}'],
    }
    for name, contents in inputs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, content in enumerate(contents):
            (folder / name / f"{index:02}").write_bytes(content)


def images() -> list[bytes]:
    """Return files of every format, in the modes and with the options that are read in their own way."""
    ramp = Image.linear_gradient("L").resize((23, 17))
    color = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))
    alpha = color.copy()
    alpha.putalpha(ramp)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    palette = color.quantize(8)
    choices: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (color, "JPEG", {"exif": exif}),
        (color, "JPEG", {"progressive": True, "quality": 50, "subsampling": 0}),
        (ramp, "JPEG", {"restart_marker_blocks": 1}),
        (color.convert("CMYK"), "JPEG", {}),
        (color, "PNG", {"exif": exif}),
        (alpha, "PNG", {}),
        (ramp, "PNG", {"transparency": 7}),
        (ramp.convert("1"), "PNG", {}),
        (ramp.convert("I;16"), "PNG", {}),
        (palette, "PNG", {"bits": 4, "transparency": 3}),
        (color, "PPM", {}),
        (ramp, "PPM", {}),
        (ramp.convert("1"), "PPM", {}),
        (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(90)], "transparency": 3}),
        (ramp, "GIF", {"interlace": 1}),
        (color, "BMP", {}),
        (palette, "BMP", {}),
        *((color, "TIFF", {"compression": kind}) for kind in ("raw", "packbits", "tiff_lzw", "tiff_deflate", "jpeg")),
        (ramp.convert("1"), "TIFF", {"compression": "group4"}),
        (alpha, "WEBP", {"lossless": True}),
        (color, "WEBP", {"quality": 30, "exif": exif}),
    ]
    return [_saved(image, kind, options) for image, kind, options in choices]


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    """Return the file that an image is saved to."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tensors() -> list[bytes]:
    """Return files of torch.save: of a tensor, of a view with strides of its own, and of something else."""
    pixels = torch.arange(3 * 5 * 7).to(torch.uint8).reshape(3, 5, 7)
    values: tuple[Any, ...] = (
        pixels,
        pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        pixels[:, :1].expand(3, 5, 7),
        {},
    )
    found = []
    for value in values:
        file = io.BytesIO()
        torch.save(value, file)
        found.append(file.getvalue())
    return found


def tokenizer() -> bytes:
    """Return a small tokenizer.bin: control pieces, all bytes, added and ordinary pieces."""
    pieces = [(text, 0.0) for text in ("<unk>", "<s>", "</s>", "<image>", "<pad>")]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [(text, -float(index)) for index, text in enumerate(("a", " ", " a", "is", " is", "ä", "Wh", "What"))]
    encoded = [(text.encode(), score) for text, score in pieces]
    content = struct.pack("<IIII", len(pieces), 1, 2, 7)
    return content + b"".join(struct.pack("<fI", score, len(text)) + text for text, score in encoded)


def byte_level_tokenizers() -> list[bytes]:
    """Return small files of tokenizer.json: each way to split text, and both spellings of merges."""
    found = []
    for name in NAMES:
        file = json.loads(boundary_tokenizer(name).to_str())
        file["added_tokens"] = [{"id": 999, "content": "<s>", "special": True}]
        model = file["model"]
        model["merges"] = model["merges"][:9]
        model["vocab"] = {token: index for token, index in model["vocab"].items() if index < 300}
        found.append(json.dumps(file).encode())
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
        found.append(json.dumps(file, ensure_ascii=False).encode())
    return found


def segments(places: Sequence[tuple[int, int]] = ((0, 16), (16, 24)), data: bytes = bytes(40)) -> bytes:
    """Return the file of a program that has nothing but segments: of ``data``, each from an offset on so many bytes."""
    segment = struct.pack("<HHHH", 8, 24, 8, 16)  # a table's fields: offset and size
    tables = b"".join(struct.pack("<iiQQ", 8 + 24 * index, 0, *place) for index, place in enumerate(places))
    # The root: a table whose fifth field is the list of segments.
    root = struct.pack("<HHHHHHH", 14, 8, 0, 0, 0, 0, 4) + bytes(2) + struct.pack("<iI", 16, 4)
    at_root = 64
    at_list = at_root + len(root)
    at_tables = at_list + 4 + 4 * len(places) + len(segment)
    offsets = [at_tables + 24 * index - (at_list + 4 + 4 * index) for index in range(len(places))]
    listed = struct.pack(f"<{1 + len(places)}I", len(places), *offsets) + segment
    size = at_tables + len(tables)
    head = struct.pack("<I4s4sIQQQ", at_root + 16, b"ET12", b"eh00", 32, size, size, len(data))
    return head.ljust(at_root, b"\0") + root + listed + tables + data
