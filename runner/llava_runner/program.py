"""An exported program on ExecuTorch's runtime: the three methods of the contract as Python calls."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from llava_runner.contract import METHODS, MODEL_CARD, TEXT_DECODER, TOKEN_EMBEDDING, VISION_ENCODER, ModelCard
from llava_runner.errors import PackageError

# The head of a .pte: flatbuffer root offset (skipped), file identifier, then ExecuTorch's extended header with its
# magic, its length, the size of the flatbuffer, the offset of the segments and their size. Little-endian.
PTE_HEAD = struct.Struct("<4x4s4sIQQQ")
PTE_IDENTIFIER_PREFIX = b"ET"
EXTENDED_HEADER_MAGIC = b"eh00"


class Program:
    """A loaded ``.pte``; its text decoder holds one KV cache, so one conversation runs on it at a time."""

    def __init__(self, methods: dict[str, Any], *, card: ModelCard) -> None:
        self._methods = methods
        self.card = card

    @classmethod
    def open(cls, path: str | Path) -> Program:
        """Load the program and its three methods, weights packed and ready to run.

        Raises ``PackageError`` when the file is missing, damaged, or not a program of this contract.
        """
        path = Path(path)
        _check_file(path)
        runtime = _import_runtime()
        log = io.StringIO()
        try:
            # The runtime reports to Python's stderr: on most machines that files of Arm phones are not there, and
            # what it stumbles over, which belongs into our one line.
            with contextlib.redirect_stderr(log):
                runtime._threadpool_get_thread_count()  # starts the pool
                program = runtime._load_program(
                    str(path), program_verification=runtime.Verification.InternalConsistency
                )
                names = {program.get_method_name(index) for index in range(program.num_methods())}
                _check_methods(names)
                card = ModelCard.from_json(program.load_method(MODEL_CARD).call(())[0])
                methods = {name: program.load_method(name) for name in METHODS}
        except PackageError as error:
            raise PackageError(f"{path} cannot be used: {error}") from error
        except RuntimeError as error:
            reason = log.getvalue().strip().rpartition("\n")[2]
            raise PackageError(f"{path} cannot be loaded: {error} {reason}") from error
        return cls(methods, card=card)

    def encode_image(self, pixels: np.ndarray) -> torch.Tensor:
        """RGB uint8 ``[3, H, W]``, sides up to ``image_size`` -> float32 ``[1, num_image_tokens, hidden_size]``."""
        return self._run(VISION_ENCODER, torch.from_numpy(np.ascontiguousarray(pixels)))

    def embed(self, input_ids: list[int]) -> torch.Tensor:
        """``T`` token ids -> float32 ``[1, T, hidden_size]``."""
        pieces = torch.tensor([input_ids], dtype=torch.int64).split(self.card.max_seq_len, dim=1)
        return torch.cat([self._run(TOKEN_EMBEDDING, piece.contiguous()) for piece in pieces], dim=1)

    def decode(self, inputs_embeds: torch.Tensor, *, position: int) -> torch.Tensor:
        """Append to the context at ``position`` and return the logits of the last row.

        float32 ``[1, T, hidden_size]`` -> float32 ``[vocab_size]``. More rows than ``card.max_seq_len`` go in as
        several calls. Rows cached at ``position`` and after it by earlier calls are forgotten.
        """
        for piece in inputs_embeds.split(self.card.max_seq_len, dim=1):
            logits = self._run(TEXT_DECODER, piece.contiguous(), torch.tensor([position], dtype=torch.int64))
            position += piece.shape[1]
        return logits.reshape(-1)

    def _run(self, method: str, *inputs: torch.Tensor) -> torch.Tensor:
        # The runtime writes every result to the same planned memory: clone_outputs gives the caller a copy to keep.
        return self._methods[method].call(inputs, clone_outputs=True)[0]


def _check_file(path: Path) -> None:
    """Refuse what is no whole ``.pte`` before the runtime maps it: reading a map beyond the file's end kills us."""
    if not path.exists():
        raise PackageError(f"{path} does not exist")
    if not path.is_file():
        raise PackageError(f"{path} is not a file; a program is a file that ends in .pte")
    with path.open("rb") as file:
        head = file.read(PTE_HEAD.size)
        size = os.fstat(file.fileno()).st_size
    if len(head) < PTE_HEAD.size:
        raise PackageError(f"{path} is not an ExecuTorch program: it has only {size} bytes")
    identifier, magic, _, program_size, segment_offset, segment_size = PTE_HEAD.unpack(head)
    if not identifier.startswith(PTE_IDENTIFIER_PREFIX) or magic != EXTENDED_HEADER_MAGIC:
        raise PackageError(f"{path} is not an ExecuTorch program (.pte)")
    expected = max(program_size, segment_offset + segment_size)
    if size < expected:
        raise PackageError(f"{path} is truncated: {size} of {expected} bytes. Copy or export it again.")


def _check_methods(names: set[str]) -> None:
    if missing := sorted({*METHODS, MODEL_CARD} - names):
        raise PackageError(
            f"it is a program of another kind: it lacks {', '.join(missing)} "
            f"and has {', '.join(sorted(names))}; export the model with llava_export"
        )


def _import_runtime() -> ModuleType:
    """The runtime's bindings with every kernel a program may need.

    ``portable_lib`` and ``custom_ops.py``, the documented entrances, import the whole of exir, inductor and torchao
    on the way: 5 seconds and 200 MB that running a program does not need. What they load is loaded here directly.
    """
    from executorch.extension.pybindings import _C as runtime

    torch.ops.load_library(_shared_library("executorch.extension.llm.custom_ops", "libcustom_ops_aot_lib"))
    torch.ops.load_library(_shared_library("executorch.kernels.quantized", "libquantized_ops_aot_lib"))
    return runtime


def _shared_library(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for library in Path(folder).glob(f"{name}.*"):
            return library
    raise ImportError(f"executorch is installed without {name}; install the version in requirements.txt")
