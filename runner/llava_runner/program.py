"""An exported program on ExecuTorch's runtime: the methods of the contract as Python calls."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import threading
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsIndex

import numpy as np
import torch

from llava_runner import engine_library
from llava_runner.checks import MAX_THREADS, whole_number
from llava_runner.contract import METHODS, MODEL_CARD, TEXT_DECODER, TOKEN_EMBEDDING, VISION_ENCODER, ModelCard
from llava_runner.errors import PackageError, PromptError, replace_missing_streams
from llava_runner.program_file import check_file, check_structure

_loading = threading.Lock()  # redirecting stderr, and replacing the pool of threads, are for one thread at a time
_loaded: weakref.WeakSet[Program] = weakref.WeakSet()
_process_of_pool: list[int] = []  # the process that started ExecuTorch's threads


class Program:
    """A loaded ``.pte``. It has one KV cache, so it serves one conversation, in one thread at a time."""

    def __init__(self, methods: dict[str, Any], *, card: ModelCard, traced: dict[str, Any] | None = None) -> None:
        self._methods = methods
        self._traced = traced or {}
        self.card = card
        _loaded.add(self)

    @classmethod
    def open(cls, path: str | Path, *, cpu_threads: SupportsIndex | None = None, trace: bool = False) -> Program:
        """Load a program and its methods, with their weights packed and ready to run.

        ``cpu_threads`` is the number of threads to compute with, for the whole process, from 1 to 1024. None stands for
        as many as ExecuTorch chooses, or as an earlier call has set. It can change only while no program is loaded.
        ``trace`` records the time of each operator, for ``write_traces``.

        What ExecuTorch interprets of the file is compared with its manifest first, if one is next to it; weights are
        not. Raises ``PackageError`` if the file is missing, damaged, or not a program of this contract, ``PromptError``
        for a number of threads that is not possible, and ``RuntimeError`` in a forked child of a process that has
        loaded a program.
        """
        path = Path(path)
        if cpu_threads is not None:
            cpu_threads = whole_number("cpu_threads", cpu_threads, least=1, most=MAX_THREADS)
        check_file(path)
        check_structure(path)
        if _process_of_pool and _process_of_pool != [os.getpid()]:
            raise RuntimeError(
                "ExecuTorch does not work in a forked child of a process that has loaded a program; "
                'start the child by the method "spawn"'
            )
        with _loading:
            return cls._load(path, cpu_threads=cpu_threads, trace=trace)

    @classmethod
    def _load(cls, path: Path, *, cpu_threads: int | None, trace: bool) -> Program:
        """Load a program while no other thread does."""
        runtime = _import_runtime()
        log = io.StringIO()
        replace_missing_streams()  # the runtime takes for granted that they are there
        try:
            # The runtime writes to Python's stderr. On most machines it reports missing files that only Arm phones
            # have, which helps nobody. If it fails, its last line is the reason, and becomes part of our message.
            with contextlib.redirect_stderr(log):
                _set_threads(runtime, cpu_threads)  # before loading: XNNPACK's delegates keep the pool that is there
                file: Any = os.fsencode(path)  # a name that is not UTF-8 is no text for the runtime
                program = runtime._load_program(file, program_verification=runtime.Verification.InternalConsistency)
                names = {program.get_method_name(index) for index in range(program.num_methods())}
                _check_methods(names, METHODS[1:] if MODEL_CARD in names else METHODS)
                (text,) = program.load_method(MODEL_CARD).call(())
                if not isinstance(text, str):
                    raise PackageError(f"its {MODEL_CARD} is no text")
                card = ModelCard.from_json(text)
                _check_methods(names, card.methods)
                # A loaded program has one trace for all its methods. It is loaded once per method to keep them apart.
                traced = {name: runtime._load_program(file, enable_etdump=True) for name in card.methods if trace}
                methods = {name: traced.get(name, program).load_method(name) for name in card.methods}
        except PackageError as error:
            raise PackageError(f"{path} cannot be used: {error}") from error
        except RuntimeError as error:
            reason = log.getvalue().strip().rpartition("\n")[2]
            raise PackageError(f"{path} cannot be loaded: {error} {reason}") from error
        return cls(methods, card=card, traced=traced)

    def write_traces(self, folder: Path) -> None:
        """Write ``METHOD.etdump`` for each method, with its calls so far. ExecuTorch's Inspector reads the files."""
        for name, program in self._traced.items():
            program.write_etdump_result_to_file(os.fsencode(folder / f"{name}.etdump"))

    def encode_image(self, pixels: np.ndarray) -> torch.Tensor:
        """Return the features ``float32 [1, num_image_tokens, hidden_size]`` of an RGB image ``uint8 [3, H, W]``.

        H and W are at most ``card.image_size``. Raises ``PackageError`` if the program is a language model alone.
        """
        if not self.card.num_image_tokens:
            raise PackageError(f"{self.card.source} is a language model without a vision encoder, which reads no image")
        return self._run(VISION_ENCODER, torch.from_numpy(np.ascontiguousarray(pixels)))

    def embed(self, input_ids: list[int]) -> torch.Tensor:
        """Return the rows ``float32 [1, T, hidden_size]`` of T token ids. T may exceed ``card.max_seq_len``."""
        pieces = torch.tensor([input_ids], dtype=torch.int64).split(self.card.max_seq_len, dim=1)
        return torch.cat([self._run(TOKEN_EMBEDDING, piece.contiguous()) for piece in pieces], dim=1)

    def decode(self, inputs_embeds: torch.Tensor, *, position: int) -> torch.Tensor:
        """Read rows ``float32 [1, T, hidden_size]`` from ``position`` on.

        Returns the last row's logits ``float32 [vocab_size]``. The KV cache keeps these rows, and forgets what it held
        from ``position`` on. More than ``card.max_seq_len`` rows are read by several calls of the method.
        """
        for piece in inputs_embeds.split(self.card.max_seq_len, dim=1):
            logits = self.verify(piece, position=position)
            position += piece.shape[1]
        return logits[-1]

    def verify(self, inputs_embeds: torch.Tensor, *, position: int) -> torch.Tensor:
        """Read rows ``float32 [1, T, hidden_size]`` from ``position`` on by one call, at most ``card.max_seq_len``.

        Returns the logits ``float32 [K, vocab_size]`` after the last of them: K is the smaller of T and
        ``card.logits_to_keep``. The KV cache keeps the rows as by ``decode``.
        """
        return self._run(TEXT_DECODER, inputs_embeds.contiguous(), torch.tensor([position], dtype=torch.int64))[0]

    def _run(self, method: str, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the one output of a method."""
        replace_missing_streams()
        # The runtime writes every result to the same memory. With clone_outputs, the caller gets a copy to keep.
        return self._methods[method].call(inputs, clone_outputs=True)[0]


def runtime_names() -> tuple[set[str], set[str]]:
    """Return the names of the operators and of the backends that a program finds here.

    Raises ``ImportError`` or ``OSError`` where ExecuTorch's runtime cannot be loaded.
    """
    runtime = _import_runtime()
    with _loading, contextlib.redirect_stderr(io.StringIO()):  # where it says why a backend is not available
        backends = {name for name in runtime._get_registered_backend_names() if runtime._is_available(name)}
    return set(runtime._get_operator_names()), backends


def _set_threads(runtime: ModuleType, cpu_threads: int | None) -> None:
    """Start ExecuTorch's threads, as many as ``cpu_threads`` says. Raises ``PromptError`` if programs use others."""
    _process_of_pool[:] = [os.getpid()]
    running = runtime._threadpool_get_thread_count()  # this starts the pool
    if cpu_threads is None or cpu_threads == running:
        return
    if _loaded:  # they would compute with threads that are gone
        raise PromptError(
            f"cpu_threads {cpu_threads}: a program is loaded that computes with {running}, and the number is one for "
            "the whole process; close its session first"
        )
    runtime._unsafe_reset_threadpool(cpu_threads)


def _check_methods(names: set[str], methods: tuple[str, ...]) -> None:
    """Raise ``PackageError`` unless the methods and the model card are among the names."""
    if missing := sorted({*methods, MODEL_CARD} - names):
        raise PackageError(
            f"it is a program of another kind: it lacks {', '.join(missing)} "
            f"and has {', '.join(sorted(names))}; export the model with llava_export"
        )


def _import_runtime() -> ModuleType:
    """Return the bindings of ExecuTorch's runtime, with all kernels that a program may need.

    The documented modules ``portable_lib`` and ``custom_ops.py`` also import exir, inductor and torchao. That takes 5
    seconds and 200 MB, and running a program does not need them. So we load directly what those modules load.

    Raises ``RuntimeError`` in a process that has loaded the C++ engine.
    """
    if engine_library.is_loaded():  # both register the same operators, which would end the process
        raise RuntimeError("ExecuTorch's Python runtime cannot be loaded: the C++ engine is in this process already")
    from executorch.extension.pybindings import _C as runtime

    torch.ops.load_library(_shared_library("executorch.extension.llm.custom_ops", "libcustom_ops_aot_lib"))
    torch.ops.load_library(_shared_library("executorch.kernels.quantized", "libquantized_ops_aot_lib"))
    return runtime


def _shared_library(package: str, name: str) -> Path:
    """Return the path of a shared library in an installed package. Raises ``ImportError`` if it is not there."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for library in Path(folder).glob(f"{name}.*"):
            return library
    raise ImportError(f"executorch is installed without {name}; install the version in requirements.txt")
