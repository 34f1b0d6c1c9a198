"""GGUF files, for the fuzzer of Python's parsers."""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGUFWriter

from llava_export.gguf.comparison import open_gguf, value


def small(folder: Path) -> bytes:
    """Return a GGUF file with one tensor."""
    writer = GGUFWriter(folder / "small.gguf", "llama")
    writer.add_file_type(1)
    writer.add_string("llava_export.source", "tiny-llava")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("x", torch.ones(2, 4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / "small.gguf").read_bytes()


def read(path: Path) -> None:
    """Read a GGUF file, and what it says of itself."""
    reader = open_gguf(path)
    value(reader, "general.file_type", int)
    value(reader, "llava_export.source", str)
    for tensor in reader.tensors:
        tensor.data.sum()
