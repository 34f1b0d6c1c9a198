"""The C++ runner in this process, by its C interface ``llava.h``: no torch is needed, and none is imported."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llava_runner.errors import ImageError, PackageError, PromptError, StateError, UserError

LIBRARY = "libllava_engine.so"
VARIABLE = "LLAVA_ENGINE"  # of the environment: the library's path
STOP_REASONS = (None, "eos", "length", "context", "cancelled", "stop")

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
    )

    def __init__(self, *, stops: Sequence[str] = (), **fields: Any) -> None:
        texts = (c_char_p * len(stops))(*map(str.encode, stops))
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
    "llava_next": (c_int64, POINTER(c_char_p), POINTER(c_size_t)),
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
    "llava_restore_bytes": (c_int64, c_char_p, c_size_t),
}
OK, END, PACKAGE_ERROR, IMAGE_ERROR, PROMPT_ERROR, STATE_ERROR, MISUSE, BUSY, NO_MEMORY, BUG = range(10)
ERRORS: dict[int, type[UserError]] = {
    PACKAGE_ERROR: PackageError,
    IMAGE_ERROR: ImageError,
    PROMPT_ERROR: PromptError,
    STATE_ERROR: StateError,
}


def find_library() -> Path | None:
    """Return the path of the engine, or None where it is not built.

    It is looked for where the environment variable ``LLAVA_ENGINE`` says, in this package, and where
    ``runner/build.sh native`` leaves it in a checkout.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
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


class Engine:
    """An open session of the C interface. Each call raises the error that the C++ runner reports."""

    def __init__(
        self,
        package: str | os.PathLike[str],
        *,
        library: Path,
        tokenizer: str | os.PathLike[str] | None = None,
        packed_cache: str | None = None,
        cpu_threads: int = 0,
        check: bool = False,
    ) -> None:
        self._library = load_library(library)
        self._number = c_int64()
        options = OpenOptions(
            tokenizer_path=None if tokenizer is None else os.fsencode(tokenizer),
            packed_cache_path=None if packed_cache is None else os.fsencode(packed_cache),
            cpu_threads=cpu_threads,
            check=check,
        )
        self._do(self._library.llava_open(os.fsencode(package), byref(options), byref(self._number)))

    def _do(self, status: int) -> bool:
        """Return whether a call did what it should, or False after the end of an answer. Raises what went wrong."""
        if status in (OK, END):
            return status == OK
        message = self._library.llava_error().decode(errors="replace")
        if status in ERRORS:
            raise ERRORS[status](message)
        raise MemoryError(message) if status == NO_MEMORY else RuntimeError(message)

    def _call(self, name: str, *arguments: Any) -> bool:
        return self._do(getattr(self._library, name)(self._number, *arguments))

    def close(self) -> None:
        """End the answer that is being made, and free the memory."""
        self._call("llava_close")

    def add_image(self, content: bytes) -> None:
        """Add an image to the next turn: the content of an image file."""
        self._call("llava_add_image", content, len(content))

    def add_tensor(self, pixels: np.ndarray) -> None:
        """Add an image to the next turn: ``uint8 [3, H, W]``, as the vision encoder reads it."""
        pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
        self._call("llava_add_tensor", pixels.ctypes.data, pixels.shape[2], pixels.shape[1])

    def remove_images(self) -> None:
        """Forget the images that were added."""
        self._call("llava_remove_images")

    def read_ahead(self) -> None:
        """Read the added images now."""
        self._call("llava_read_ahead")

    def begin(self, text: str, **options: Any) -> None:
        """Read the added images and the text. ``options`` are those of ``AskOptions``."""
        self._call("llava_begin", text.encode(), byref(AskOptions(**options)))

    def next(self) -> str | None:
        """Compute a token. Return the characters that it completes, or None after the end."""
        text = c_char_p()
        return (text.value or b"").decode() if self._call("llava_next", byref(text), None) else None

    def ask(self, text: str, on_text: Callable[[str], bool | None] | None = None, **options: Any) -> None:
        """Take a turn and compute all of its answer.

        ``on_text`` gets each piece, and may return True to end the answer. What it raises ends it, too.
        """
        raised: list[BaseException] = []

        def receive(_: Any, piece: int, length: int) -> int:
            try:
                return bool(on_text and on_text(ctypes.string_at(piece, length).decode()))
            except BaseException as error:
                raised.append(error)
                return 1

        self._call("llava_ask", text.encode(), byref(AskOptions(**options)), OnText(receive), None)
        if raised:
            raise raised[0]

    def cancel(self) -> None:
        """End the answer that is being made, from any thread."""
        self._call("llava_cancel")

    def reset(self) -> None:
        """Forget the conversation."""
        self._call("llava_reset")

    def logits(self) -> np.ndarray | None:
        """Return the logits ``float32 [V]`` that the next token is chosen by, or None after the end.

        They may be changed in place until the next call.
        """
        logits, count = POINTER(c_float)(), c_size_t()
        if not self._call("llava_logits", byref(logits), byref(count)):
            return None
        return np.ctypeslib.as_array(logits, (count.value,))

    def last(self) -> AnswerFields:
        """Return stop reason, number of tokens and timings of the newest answer."""
        fields = AnswerFields()
        self._call("llava_last", byref(fields))
        return fields

    def last_ids(self) -> list[int]:
        """Return the token ids of the newest answer."""
        count = c_size_t()
        self._call("llava_last_ids", None, 0, byref(count))
        ids = np.empty(count.value, np.int32)
        self._call("llava_last_ids", ids.ctypes.data, len(ids), byref(count))
        return ids.tolist()

    def last_logprobs(self, token: int) -> list[tuple[int, float]]:
        """Return ids and log probabilities for a token of the newest answer: its own, then the likeliest ones."""
        count = c_size_t()
        self._call("llava_last_logprobs", token, None, 0, byref(count))
        found = (LogprobFields * count.value)()
        self._call("llava_last_logprobs", token, found, len(found), byref(count))
        return [(each.id, each.logprob) for each in found]

    def describe(self) -> Info:
        """Return the position, the context and the sizes of the model."""
        info = Info()
        self._call("llava_describe", byref(info))
        return info

    def model_card(self) -> str:
        """Return the model card in JSON."""
        text = c_char_p()
        self._call("llava_model_card", byref(text))
        return (text.value or b"").decode()

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has."""
        count = c_size_t()
        self._call("llava_count_tokens", text.encode(), byref(count))
        return count.value

    def save(self, path: str | os.PathLike[str] | None = None) -> bytes | None:
        """Keep the conversation in a file, or return it if no path is given."""
        if path is not None:
            self._call("llava_save", os.fsencode(path))
            return None
        size = c_size_t()
        self._call("llava_save_bytes", None, 0, byref(size))
        saved = ctypes.create_string_buffer(size.value)
        self._call("llava_save_bytes", saved, size.value, byref(size))
        return saved.raw

    def restore(self, saved: str | os.PathLike[str] | bytes) -> None:
        """Go on with a conversation that ``save`` kept."""
        if isinstance(saved, bytes):
            self._call("llava_restore_bytes", saved, len(saved))
        else:
            self._call("llava_restore", os.fsencode(saved))
