"""Where quantized layers wait on disk, so that a calibration that was stopped goes on where it was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava_export.errors import ExportError
from llava_export.models.names import is_decoder_layer
from llava_export.quantize.weights import CalibratedBlock

KEY, LAYER = "key.txt", ".safetensors"  # the ends of the names of files


class LayerStore:
    """Quantized layers in a folder, one file each. ``key`` stands for all that they depend on."""

    def __init__(self, folder: Path, *, key: str) -> None:
        """Open the folder, or make it. Layers of another key are removed.

        Raises ``ExportError`` if something else is there.
        """
        self._folder = folder
        found = folder / KEY
        if os.path.lexists(folder) and not found.is_file() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ExportError(f"{folder} is there, and no earlier export made it; layers wait in a folder of that name")
        if not found.is_file() or found.read_bytes() != key.encode():
            for path in folder.glob(f"*{LAYER}"):
                path.unlink()
            folder.mkdir(parents=True, exist_ok=True)
            found.write_bytes(key.encode())

    def load(self, fqn: str) -> CalibratedBlock | None:
        """Return a layer by its name in the model, or None if it is not there, or damaged."""
        try:
            tensors = load_file(self._path(fqn))
        except (FileNotFoundError, SafetensorError):
            return None
        found = CalibratedBlock()
        for name, tensor in tensors.items():
            owner, _, what = name.rpartition(".")
            if what == "integers":
                found.linears[owner] = tensor, tensors[f"{owner}.scales"]
            elif what == "weight":
                found.norms[owner] = tensor
        return found

    def save(self, fqn: str, layer: CalibratedBlock) -> None:
        """Write a layer. A process that is killed meanwhile leaves none."""
        tensors: dict[str, Tensor] = {f"{name}.weight": weight for name, weight in layer.norms.items()}
        for name, (integers, scales) in layer.linears.items():
            tensors |= {f"{name}.integers": integers.contiguous(), f"{name}.scales": scales.contiguous()}
        unfinished = self._folder / f"unfinished-{os.getpid()}"
        save_file(tensors, unfinished)
        os.replace(unfinished, self._path(fqn))

    def layer(self, fqn: str) -> CalibratedBlock | None:
        """Return a layer of a calibration that is done, and None for a block that is no layer of the decoder."""
        if not is_decoder_layer(fqn):
            return None
        found = self.load(fqn)
        if found is None:
            raise ExportError(f"{self._path(fqn)} is gone or damaged: another process removed it, or the disk is full")
        return found

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, fqn: str) -> Path:
        return self._folder / f"{fqn}{LAYER}"
