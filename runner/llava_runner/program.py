"""An exported program on ExecuTorch's runtime: the three methods of the contract as Python calls."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from llava_runner.contract import METHODS, MODEL_CARD, TEXT_DECODER, TOKEN_EMBEDDING, VISION_ENCODER, ModelCard
from llava_runner.errors import PackageError
from llava_runner.program_file import check_file


class Program:
    """A loaded ``.pte``; its text decoder holds one KV cache, so one conversation runs on it at a time."""

    def __init__(self, methods: dict[str, Any], *, card: ModelCard, traced: dict[str, Any] | None = None) -> None:
        self._methods = methods
        self._traced = traced or {}
        self.card = card

    @classmethod
    def open(cls, path: str | Path, *, cpu_threads: int | None = None, trace: bool = False) -> Program:
        """Load the program and its three methods, weights packed and ready to run.

        ``cpu_threads`` to compute with, otherwise as many as ExecuTorch finds fit; it holds for the whole process.
        ``trace`` records what each operator takes, for ``write_traces``.

        Raises ``PackageError`` when the file is missing, damaged, or not a program of this contract.
        """
        path = Path(path)
        check_file(path)
        runtime = _import_runtime()
        log = io.StringIO()
        try:
            # The runtime reports to Python's stderr: on most machines that files of Arm phones are not there, and
            # what it stumbles over, which belongs into our one line.
            with contextlib.redirect_stderr(log):
                runtime._threadpool_get_thread_count()  # starts the pool
                if cpu_threads:  # before anything is loaded, since XNNPACK's delegates keep the pool they find
                    runtime._unsafe_reset_threadpool(cpu_threads)
                program = runtime._load_program(
                    str(path), program_verification=runtime.Verification.InternalConsistency
                )
                names = {program.get_method_name(index) for index in range(program.num_methods())}
                _check_methods(names)
                card = ModelCard.from_json(program.load_method(MODEL_CARD).call(())[0])
                # A program has one tracer: three of it keep the methods apart.
                traced = {name: runtime._load_program(str(path), enable_etdump=True) for name in METHODS if trace}
                methods = {name: traced.get(name, program).load_method(name) for name in METHODS}
        except PackageError as error:
            raise PackageError(f"{path} cannot be used: {error}") from error
        except RuntimeError as error:
            reason = log.getvalue().strip().rpartition("\n")[2]
            raise PackageError(f"{path} cannot be loaded: {error} {reason}") from error
        return cls(methods, card=card, traced=traced)

    def write_traces(self, folder: Path) -> None:
        """``METHOD.etdump`` for each method, with all its calls, for ExecuTorch's Inspector to read."""
        for name, program in self._traced.items():
            program.write_etdump_result_to_file(str(folder / f"{name}.etdump"))

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
