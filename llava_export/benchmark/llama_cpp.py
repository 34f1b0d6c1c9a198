"""A round of llama.cpp through llama-cpp-python. It takes the flags of ``llava_bench`` and prints the same JSON."""

from __future__ import annotations

import argparse
import ctypes
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from llava_runner.arguments import ArgumentParser, depths, run_command
from llava_runner.bench import measured
from llava_runner.errors import UserError
from llava_runner.timings import Stage


class LlamaCppError(UserError):
    """llama.cpp is not installed, or does not load the files."""


class LlamaCpp:
    """Language model and vision tower in llama.cpp, with one context. Images are RGB, ``uint8 [H, W, 3]``."""

    def __init__(self, text: Path, mmproj: Path, *, n_ctx: int, threads: int | None = None) -> None:
        """Load both files. ``n_ctx`` is the length of the context. Raises ``LlamaCppError``."""
        for path in (text, mmproj):
            if not path.is_file():
                raise LlamaCppError(f"{path} does not exist")
        llama_cpp, mtmd = _import_library()
        self.library, self.mtmd = llama_cpp, mtmd
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        for log_set in (mtmd.mtmd_log_set, mtmd.mtmd_helper_log_set):
            log_set(self._silence, ctypes.c_void_p(0))
        try:
            self.llama = llama_cpp.Llama(
                str(text), n_ctx=n_ctx, n_batch=n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False
            )
        except ValueError as error:
            raise LlamaCppError(f"llama.cpp does not load {text}: {error}") from error
        parameters = mtmd.mtmd_context_params_default()
        parameters.use_gpu = False
        parameters.print_timings = False
        parameters.n_threads = self.llama.n_threads
        # Warming up encodes an image of a fixed size, and some projectors abort on it.
        parameters.warmup = False
        self.mtmd_context = mtmd.mtmd_init_from_file(str(mmproj).encode(), self.llama.model, parameters)
        if self.mtmd_context is None:
            raise LlamaCppError(f"llama.cpp does not load {mmproj}")

    def forget(self, *, position: int = 0) -> None:
        """Remove the context from ``position`` on."""
        memory = self.library.llama_get_memory(self.llama.ctx)
        self.library.llama_memory_seq_rm(memory, 0, position, -1)

    def decode(self, ids: list[int]) -> np.ndarray:
        """Append tokens to the context. Return the logits ``[vocab_size]`` of the last one."""
        tokens = (self.library.llama_token * len(ids))(*ids)  # the batch only points to them
        batch = self.library.llama_batch_get_one(tokens, len(ids))
        _check(self.library.llama_decode(self.llama.ctx, batch), "llama_decode")
        return self._logits()

    def read(self, prompt: str, image: np.ndarray) -> np.ndarray:
        """Clear the context and read a prompt, with the image at its marker.

        Return the logits ``[vocab_size]`` of the last token.
        """
        self.forget()
        end = self.library.llama_pos(0)
        chunks = self._chunks(prompt, image)
        batch = self.llama.n_batch
        done = self.mtmd.mtmd_helper_eval_chunks(
            self.mtmd_context, self.llama.ctx, chunks, 0, 0, batch, True, ctypes.byref(end)
        )
        _check(done, "mtmd_helper_eval_chunks")
        return self._logits()

    def _logits(self) -> np.ndarray:
        """Return the logits ``[vocab_size]`` of the last token, in memory of llama.cpp."""
        logits = self.library.llama_get_logits_ith(self.llama.ctx, -1)
        return np.ctypeslib.as_array(logits, (self.llama.n_vocab(),))

    def _chunks(self, prompt: str, image: np.ndarray) -> Any:
        """Return a prompt as llama.cpp's chunks of text and image."""
        pixels, mtmd = np.ascontiguousarray(image), self.mtmd
        pointer = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(image.shape[1], image.shape[0], pointer)
        chunks = mtmd.mtmd_input_chunks_init()
        encoded = prompt.encode()
        text = mtmd.mtmd_input_text(encoded, len(encoded), True, True)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        _check(mtmd.mtmd_tokenize(self.mtmd_context, chunks, ctypes.byref(text), bitmaps, 1), "mtmd_tokenize")
        return chunks

    def encode(self, image: np.ndarray) -> tuple[Any, Any]:
        """Return an image's chunk, and a pointer to its features ``float32 [num_image_tokens, hidden_size]``."""
        mtmd = self.mtmd
        chunks = self._chunks(mtmd.mtmd_default_marker().decode(), image)
        for i in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, i)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                _check(mtmd.mtmd_encode_chunk(self.mtmd_context, chunk), "mtmd_encode_chunk")
                return chunk, mtmd.mtmd_get_output_embd(self.mtmd_context)
        raise AssertionError("llama.cpp made no image of it")

    def read_image(self, chunk: Any, features: Any, *, position: int) -> int:
        """Append an encoded image to the context at ``position``. Return the position after it."""
        end = self.library.llama_pos(position)
        no_callback = self.mtmd.mtmd_helper_post_decode_callback()
        batch = self.llama.n_batch
        done = self.mtmd.mtmd_helper_decode_image_chunk(
            self.mtmd_context, self.llama.ctx, chunk, features, position, 0, batch, ctypes.byref(end), no_callback, None
        )
        _check(done, "mtmd_helper_decode_image_chunk")
        return end.value


def build_name() -> str:
    """Return version and processor features of the installed llama.cpp. Raises ``LlamaCppError``."""
    llama_cpp, _ = _import_library()
    features = llama_cpp.llama_print_system_info().decode()
    used = [part.strip() for part in features.replace("CPU :", "").split("|") if part.strip().endswith("= 1")]
    return f"llama-cpp-python {version('llama-cpp-python')}: {', '.join(part.removesuffix(' = 1') for part in used)}"


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(
        prog="python -m llava_export.benchmark.llama_cpp",
        description="Time llama.cpp: load, an image, a prompt, and decoding. Print a line of JSON.",
    )
    for name, meaning in (
        ("model-path", "GGUF file of the language model"),
        ("mmproj", "GGUF file of the vision tower and the projector"),
        ("image", "an image"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="PATH", help=meaning)
    for name, meaning in (
        ("n-ctx", "positions of the context"),
        ("prompt-tokens", "positions of the prompt with its image"),
        ("decode-tokens", "tokens to decode at each depth"),
        ("threads", "threads to compute with"),
    ):
        parser.add_argument(f"--{name}", type=int, required=True, metavar="N", help=meaning)
    parser.add_argument(
        "--depth", type=depths, required=True, metavar="N,N,...", help="positions in the cache before decoding"
    )
    run_command(parser, lambda arguments: print(json.dumps(run(arguments))), None)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time one round. Return what ``llava_runner.bench.run`` returns, which does the same work."""
    load, image, prompt = Stage(), Stage(), Stage()
    with load.measure(0):
        llama = LlamaCpp(arguments.model_path, arguments.mmproj, n_ctx=arguments.n_ctx, threads=arguments.threads)
    with image.measure(0), Image.open(arguments.image) as opened:
        chunk, features = llama.encode(np.asarray(opened.convert("RGB")))
    with prompt.measure(arguments.prompt_tokens):
        llama.decode(_some_ids(1, llama))
        end = llama.read_image(chunk, features, position=1)
        token = int(llama.decode(_some_ids(arguments.prompt_tokens - end, llama)).argmax())
    cached = arguments.prompt_tokens
    decodings = {}
    for depth in arguments.depth:
        if depth > cached:
            llama.forget()
            llama.decode(_some_ids(depth, llama))
        llama.forget(position=depth)
        stage = Stage()
        for _ in range(arguments.decode_tokens):
            with stage.measure():
                token = int(llama.decode([token]).argmax())
        cached = depth + arguments.decode_tokens
        decodings[depth] = stage
    return measured(load=load, image=image, prompt=prompt, decodings=decodings)


def _some_ids(count: int, llama: LlamaCpp) -> list[int]:
    """Return ``count`` token ids. No time depends on which ones."""
    return [(i * 7919 + llama.llama.token_bos()) % llama.llama.n_vocab() for i in range(count)]


def _import_library() -> tuple[Any, Any]:
    """Return llama-cpp-python and its bindings of mtmd. Raises ``LlamaCppError`` where it is not installed."""
    try:
        import llama_cpp
        from llama_cpp import mtmd_cpp
    except ImportError as error:
        raise LlamaCppError("llama-cpp-python is not installed: pip install llava-export[llama]") from error
    return llama_cpp, mtmd_cpp


def _check(code: int, call: str) -> None:
    """Stop at an error code of llama.cpp."""
    assert code == 0, f"{call} returned {code}"


if __name__ == "__main__":
    main()
