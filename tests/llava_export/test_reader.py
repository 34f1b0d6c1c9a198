"""Reading single tensors: views in a ``.bin`` file, and the memory that files take while they are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_export.checkpoint import reader


def mapped_file_pages() -> int:
    """Return the bytes of files that this process has in its memory now."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile:")]
    return int(line.split()[1]) * 1024


def test_tensors_of_a_bin_may_be_views(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    views = {"transposed": base.t(), "column": base[:, 2], "rows": base[1:3], "scalar": base[3, 5]}
    torch.save({**views, "half": base.half()}, tmp_path / "pytorch_model.bin")
    checkpoint = reader.CheckpointReader(tmp_path)
    for name, view in views.items():
        assert torch.equal(checkpoint.read(name), view)
    assert torch.equal(checkpoint.read("half"), base.half())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux has this file")
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_pages_leave_memory_with_their_tensor(form, tmp_path):
    size = 1 << 24
    tensors = {f"{i}": torch.full((size // 2,), i, dtype=torch.float16) for i in range(12)}
    if form == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors")
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    checkpoint = reader.CheckpointReader(tmp_path)
    before, highest = mapped_file_pages(), 0
    for key in tensors:
        assert checkpoint.read(key).float().mean() == int(key)
        highest = max(highest, mapped_file_pages() - before)
    assert highest < 2 * size


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="only Linux has posix_fadvise")
@pytest.mark.parametrize(("free", "forgotten"), [(1 << 20, 3), (1 << 30, 0), (None, 0)])
def test_of_a_checkpoint_larger_than_memory_a_part_stays_cached(free, forgotten, tmp_path, monkeypatch):
    names = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    for name in names:
        save_file({name: torch.ones(100_000)}, tmp_path / name)
    index = {"weight_map": {name: name for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(reader, "available_memory", lambda: free)
    advised = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, begin, length, advice: advised.append((length, advice)))
    checkpoint = reader.CheckpointReader(tmp_path)
    for name in names:
        assert checkpoint.read(name).sum() == 100_000
    assert advised == [(400_000, os.POSIX_FADV_DONTNEED)] * forgotten
