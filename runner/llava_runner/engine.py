"""The C++ runner in this process, by its C interface ``llava.h``: no torch is needed, and none is imported."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from llava_runner.answer import StopReason
from llava_runner.engine_library import (
    AnswerFields,
    AskOptions,
    Info,
    LogprobFields,
    OnText,
    OpenOptions,
    load_library,
    text_bytes,
)
from llava_runner.errors import ImageError, PackageError, PromptError, StateError, UserError

STOP_REASONS: tuple[StopReason | None, ...] = (None, "eos", "length", "context", "cancelled", "stop")
OK, END, PACKAGE_ERROR, IMAGE_ERROR, PROMPT_ERROR, STATE_ERROR, MISUSE, BUSY, NO_MEMORY, BUG = range(10)
ERRORS: dict[int, type[UserError]] = {
    PACKAGE_ERROR: PackageError,
    IMAGE_ERROR: ImageError,
    PROMPT_ERROR: PromptError,
    STATE_ERROR: StateError,
}


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
        draft_model_path: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open a package. ``llava_open_options`` in ``llava.h`` explains the options.

        Raises ``PackageError`` and ``PromptError`` as ``Session.load`` does.
        """
        self._library = load_library(library)
        self._number = c_int64()
        self._ids = (c_int32 * 1024)()  # for what `last_ids` returns
        options = OpenOptions(
            tokenizer_path=None if tokenizer is None else os.fsencode(tokenizer),
            packed_cache_path=None if packed_cache is None else os.fsencode(packed_cache),
            cpu_threads=cpu_threads,
            check=check,
            draft_model_path=None if draft_model_path is None else os.fsencode(draft_model_path),
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
        self._call("llava_begin", text_bytes(text), byref(AskOptions(**options)))

    def next(self) -> str | None:
        """Compute a token. Return the characters that it completes, or None after the end."""
        text, length = c_void_p(), c_size_t()
        is_more = self._call("llava_next", byref(text), byref(length))
        return ctypes.string_at(text, length.value).decode() if is_more else None

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

        self._call("llava_ask", text_bytes(text), byref(AskOptions(**options)), OnText(receive), None)
        if raised:
            raise raised[0]

    def set_answer(self, text: str) -> None:
        """Put a text in place of the newest answer."""
        self._call("llava_set_answer", text_bytes(text))

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
        ids = self._ids
        self._call("llava_last_ids", ids, len(ids), byref(count))
        if count.value > len(ids):
            ids = self._ids = (c_int32 * (2 * count.value))()
            self._call("llava_last_ids", ids, len(ids), byref(count))
        return ids[: count.value]

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
        self._call("llava_count_tokens", text_bytes(text), byref(count))
        return count.value

    def save(self, path: str | os.PathLike[str] | None = None) -> bytearray | None:
        """Keep the conversation in a file, or return it if no path is given."""
        if path is not None:
            self._call("llava_save", os.fsencode(path))
            return None
        size = c_size_t()
        self._call("llava_save_bytes", None, 0, byref(size))
        saved = bytearray(size.value)
        self._call("llava_save_bytes", np.frombuffer(saved, np.uint8).ctypes.data, size.value, byref(size))
        return saved

    def restore(self, saved: str | os.PathLike[str] | bytes | bytearray) -> None:
        """Go on with a conversation that ``save`` kept."""
        if isinstance(saved, (bytes, bytearray)):
            self._call("llava_restore_bytes", np.frombuffer(saved, np.uint8).ctypes.data, len(saved))
        else:
            self._call("llava_restore", os.fsencode(saved))
