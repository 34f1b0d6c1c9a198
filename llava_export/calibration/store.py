"""Where quantized layers wait on disk, so that a calibration that was stopped goes on where it was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava_export.quantize.weights import QuantizedLinears

KEY = "key.txt"


class LayerStore:
    """Quantized layers in a folder, one file each. ``key`` stands for all that they depend on."""

    def __init__(self, folder: Path, *, key: str) -> None:
        """Open the folder, or make it. Layers of another key are removed."""
        self._folder = folder
        found = folder / KEY
        if not found.is_file() or found.read_text(encoding="utf-8") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            found.write_text(key, encoding="utf-8")

    def load(self, fqn: str) -> QuantizedLinears | None:
        """Return a layer by its name in the model, or None if it is not there, or damaged."""
        try:
            tensors = load_file(self._path(fqn))
        except (FileNotFoundError, SafetensorError):
            return None
        names = {name.rpartition(".")[0] for name in tensors}
        return {name: (tensors[f"{name}.integers"], tensors[f"{name}.scales"]) for name in names}

    def save(self, fqn: str, layer: QuantizedLinears) -> None:
        """Write a layer. A process that is killed meanwhile leaves none."""
        tensors: dict[str, Tensor] = {}
        for name, (integers, scales) in layer.items():
            tensors |= {f"{name}.integers": integers.contiguous(), f"{name}.scales": scales.contiguous()}
        unfinished = self._folder / "unfinished"
        save_file(tensors, unfinished)
        os.replace(unfinished, self._path(fqn))

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, fqn: str) -> Path:
        return self._folder / f"{fqn}.safetensors"
