"""The library ``libllava_engine``: where it is, and the C interface that ``runner/cpp/engine/llava.h`` declares."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Literal

from llava_runner.errors import PackageError, PromptError

EngineName = Literal["cpp", "python"]
ENGINES: tuple[EngineName, ...] = ("cpp", "python")  # what computes: this library, or ExecuTorch's Python runtime
LIBRARY = "libllava_engine.so"
VARIABLE = "LLAVA_ENGINE"  # of the environment: the library's path, or "off"

PYTHON_RUNTIME = "executorch.extension.pybindings._C"

OnText = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t)


class _Sized(ctypes.Structure):
    """A structure that begins with its size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


class OpenOptions(_Sized):
    """``llava_open_options``."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("tokenizer_path", c_char_p),
        ("packed_cache_path", c_char_p),
        ("cpu_threads", c_int32),
        ("check", c_int32),
        ("draft_model_path", c_char_p),
    )


class AskOptions(_Sized):
    """``llava_ask_options``."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("new_conversation", c_int32),
        ("max_new_tokens", c_int32),
        ("seq_len", c_int32),
        ("has_seed", c_int32),
        ("seed", c_uint64),
        ("temperature", c_double),
        ("top_p", c_double),
        ("top_k", c_int32),
        ("num_stops", c_int32),
        ("stops", POINTER(c_char_p)),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("logprobs", c_int32),
        ("top_logprobs", c_int32),
        ("draft_max", c_int32),
    )

    def __init__(self, *, stops: Sequence[str] = (), **fields: Any) -> None:
        texts = (c_char_p * len(stops))(*(text_bytes(stop, what="a stop string") for stop in stops))
        super().__init__(num_stops=len(stops), stops=texts, **fields)


class StageFields(ctypes.Structure):
    """``llava_stage``."""

    _fields_ = (("ms", c_double), ("count", c_int32))


class AnswerFields(_Sized):
    """``llava_answer``."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("stop_reason", c_int32),
        ("num_tokens", c_int32),
        ("load", StageFields),
        ("image", StageFields),
        ("prompt", StageFields),
        ("sample", StageFields),
        ("eval", StageFields),
        ("num_drafted", c_int32),
        ("num_accepted", c_int32),
    )


class LogprobFields(ctypes.Structure):
    """``llava_logprob``."""

    _fields_ = (("id", c_int32), ("logprob", c_double))


class Info(_Sized):
    """``llava_info``."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("position", c_int32),
        ("context", c_int32),
        ("num_image_tokens", c_int32),
        ("image_size", c_int32),
        ("vocab_size", c_int32),
    )


FUNCTIONS: dict[str, Sequence[Any]] = {
    "llava_open": (c_char_p, POINTER(OpenOptions), POINTER(c_int64)),
    "llava_close": (c_int64,),
    "llava_add_image": (c_int64, c_char_p, c_size_t),
    "llava_add_pixels": (c_int64, c_void_p, c_int32, c_int32, c_size_t),
    "llava_add_tensor": (c_int64, c_void_p, c_int32, c_int32),
    "llava_remove_images": (c_int64,),
    "llava_read_ahead": (c_int64,),
    "llava_begin": (c_int64, c_char_p, POINTER(AskOptions)),
    "llava_next": (c_int64, POINTER(c_void_p), POINTER(c_size_t)),
    "llava_set_answer": (c_int64, c_char_p),
    "llava_ask": (c_int64, c_char_p, POINTER(AskOptions), OnText, c_void_p),
    "llava_cancel": (c_int64,),
    "llava_reset": (c_int64,),
    "llava_logits": (c_int64, POINTER(POINTER(c_float)), POINTER(c_size_t)),
    "llava_last": (c_int64, POINTER(AnswerFields)),
    "llava_last_ids": (c_int64, c_void_p, c_size_t, POINTER(c_size_t)),
    "llava_last_logprobs": (c_int64, c_size_t, POINTER(LogprobFields), c_size_t, POINTER(c_size_t)),
    "llava_describe": (c_int64, POINTER(Info)),
    "llava_model_card": (c_int64, POINTER(c_char_p)),
    "llava_count_tokens": (c_int64, c_char_p, POINTER(c_size_t)),
    "llava_save": (c_int64, c_char_p),
    "llava_restore": (c_int64, c_char_p),
    "llava_save_bytes": (c_int64, c_void_p, c_size_t, POINTER(c_size_t)),
    "llava_restore_bytes": (c_int64, c_void_p, c_size_t),
}


def text_bytes(text: str, *, what: str = "the prompt") -> bytes:
    """Return a text as a C function takes it: UTF-8 that ends with a zero byte.

    Raises ``PromptError``, whose message names the text by ``what``.
    """
    try:
        found = text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{what} is not valid Unicode at character {error.start}") from None
    except AttributeError:
        raise PromptError(f"{what} is {type(text).__name__}, and must be text") from None
    if b"\0" in found:
        raise PromptError(f"{what} has a zero byte, at byte {found.index(0)}")
    return found


def find_library() -> Path | None:
    """Return the path of the engine, or None where it is not built.

    It is looked for where the environment variable ``LLAVA_ENGINE`` says, in this package, and where
    ``runner/build.sh native`` leaves it in a checkout. With ``LLAVA_ENGINE=off`` there is none.
    """
    if named := os.environ.get(VARIABLE):
        return None if named == "off" else Path(named)
    here = Path(__file__).parent
    built = (here / LIBRARY, here.parents[1] / "cmake-out" / "native" / LIBRARY)
    return next((path for path in built if path.exists()), None)


@cache
def load_library(path: Path) -> ctypes.CDLL:
    """Return the engine with the types of its functions.

    Raises ``PackageError`` if it cannot be loaded, and ``RuntimeError`` in a process with ExecuTorch's Python runtime.
    """
    if PYTHON_RUNTIME in sys.modules:  # both register the same operators, which would end the process
        raise RuntimeError("the engine cannot be loaded: ExecuTorch's Python runtime is in this process already")
    try:
        library = ctypes.CDLL(str(path))
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int32
        for name in ("llava_version", "llava_error"):
            getattr(library, name).restype = c_char_p
    except (OSError, AttributeError) as error:
        raise PackageError(f"the engine {path} cannot be loaded: {error}; build it again: runner/build.sh") from error
    return library


def is_loaded() -> bool:
    """Return whether this process has loaded the engine."""
    return load_library.cache_info().currsize > 0
