"""Console script ``test_gguf``: do GGUF files hold what their checkpoint holds?

Both files are read back. Every key that llama.cpp needs, every name, shape and type is checked, and every tensor's
values against the checkpoint's, the order of q and k undone. With llama-cpp-python installed (extra ``llama``)
llama.cpp loads the language model, and its next tokens are compared with the float model's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_export.errors import ExportError
from llava_runner.errors import exit_cleanly

if TYPE_CHECKING:
    from gguf import GGUFReader
    from rich.console import Console

    from llava_export.checkpoint.checkpoint import Checkpoint
    from llava_export.targets.gguf.tensors import GgufTensor

# Largest relative error (root mean square of the difference, over that of the weights) that a type may have. Rounding
# normally distributed weights gives about two thirds of it, but for F16, where small ones may become denormal.
LARGEST_ERROR = {
    "F32": 0.0, "F16": 1e-3, "Q8_0": 0.01, "Q6_K": 0.03, "Q5_K": 0.05, "Q5_1": 0.06, "Q5_0": 0.07, "Q4_K": 0.1,
    "Q4_0": 0.13,
}  # fmt: skip
# Of llama.cpp's next token against the float model's, in nats; 4 bits move flat logits of untrained models the most.
LARGEST_KL = {"f16": 1e-3, "q8_0": 0.01, "q4_0": 0.5, "q4_k_s": 0.5, "q4_k_m": 0.5}
TEXT_KEYS = (
    "general.architecture", "general.file_type", "llama.vocab_size", "llama.context_length", "llama.embedding_length",
    "llama.block_count", "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv",
    "llama.attention.layer_norm_rms_epsilon", "llama.rope.dimension_count", "llama.rope.freq_base",
    "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type",
    "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.chat_template",
)  # fmt: skip
MMPROJ_KEYS = (
    "general.architecture", "general.file_type", "clip.has_vision_encoder", "clip.projector_type", "clip.use_gelu",
    "clip.use_silu", "clip.vision.image_size", "clip.vision.patch_size", "clip.vision.embedding_length",
    "clip.vision.feed_forward_length", "clip.vision.block_count", "clip.vision.attention.head_count",
    "clip.vision.attention.layer_norm_epsilon", "clip.vision.projection_dim", "clip.vision.feature_layer",
    "clip.vision.image_mean", "clip.vision.image_std",
)  # fmt: skip
ROWS_AT_ONCE = 1024
PROMPTS = (  # few: for each one the float model is read once from disk
    "What is in the image?", "USER: Hello. ASSISTANT:", "A chat between a curious user and", "One, two, three,",
)  # fmt: skip


@dataclass(frozen=True)
class NextToken:
    """llama.cpp's distribution of the token after a prompt against the float model's; ``kl`` in nats."""

    prompt: str
    top1: bool
    kl: float


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="test_gguf",
        description="Compare GGUF files with the checkpoint they were made of.",
        epilog="exit code: 0 the same within what their types allow, 1 different, 2 cannot be read",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="with ggml-model-*.gguf and mmproj-model-*.gguf")
    parser.add_argument("--model", help="the checkpoint (default: the one named in the files)")
    arguments = parser.parse_args()
    exit_cleanly(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    failures = check(arguments.folder, model=arguments.model, console=console)
    for failure in failures:
        console.print(f"[red]{failure}[/]")
    console.print("[bold red]FAIL[/]" if failures else "[bold green]PASS[/]")
    return 1 if failures else 0


def check(folder: Path, *, model: str | None, console: Console) -> list[str]:
    """What is wrong with the files of a folder; tables of what was compared go to the console.

    Raises a ``UserError`` for what cannot be read.
    """
    from llava_export.checkpoint.checkpoint import open_checkpoint
    from llava_export.gguf_pipeline import planned_tensors
    from llava_export.targets.gguf.tensors import SOURCE
    from llava_export.targets.gguf.types import FILE_TYPES

    texts, mmprojs = (_files(folder, prefix) for prefix in ("ggml-model-", "mmproj-model-"))
    failures: list[str] = []
    checkpoint = None
    for path, keys in [*((path, TEXT_KEYS) for path in texts), *((path, MMPROJ_KEYS) for path in mmprojs)]:
        reader = open_gguf(path)
        lacking = [key for key in keys if key not in reader.fields]
        if lacking:
            failures.append(f"{path.name}: lacks {', '.join(lacking)}")
            continue
        checkpoint = checkpoint or open_checkpoint(model or value(reader, SOURCE))
        quantization = next(name for name, kind in FILE_TYPES.items() if kind == value(reader, "general.file_type"))
        is_text = keys is TEXT_KEYS
        text, vision = planned_tensors(
            checkpoint,
            quantization=quantization if is_text else "f16",
            mmproj_type="f16" if is_text else quantization,
        )
        failures += compare_values(console, reader, text if is_text else vision, checkpoint=checkpoint, path=path)
        if is_text:
            failures += compare_next_tokens(console, path, checkpoint=checkpoint, quantization=quantization)
    return failures


def open_gguf(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, IndexError, OverflowError) as error:
        raise ExportError(f"{path} is no GGUF file, or damaged: {error}") from error


def value(reader: GGUFReader, key: str) -> Any:
    if key not in reader.fields:
        raise ExportError(f"the GGUF file does not say {key}; name the checkpoint with --model")
    return reader.fields[key].contents()


def _files(folder: Path, prefix: str) -> list[Path]:
    found = sorted(folder.glob(f"{prefix}*.gguf"))
    if not found:
        raise ExportError(f"{folder} has no {prefix}*.gguf")
    return found


def compare_values(
    console: Console, reader: GGUFReader, planned: list[GgufTensor], *, checkpoint: Checkpoint, path: Path
) -> list[str]:
    """What is wrong with the tensors of a file, and a table of the errors by type."""
    from rich.table import Table

    failures = []
    stored = {tensor.name: tensor for tensor in reader.tensors}
    if missing := [tensor.name for tensor in planned if tensor.name not in stored]:
        failures.append(f"{path.name}: lacks {', '.join(missing[:4])} ({len(missing)} tensors)")
    if extra := sorted(stored.keys() - {tensor.name for tensor in planned}):
        failures.append(f"{path.name}: has {', '.join(extra[:4])} beside ({len(extra)} tensors)")
    errors: dict[str, list[float]] = {}
    for tensor in planned:
        if tensor.name not in stored:
            continue
        found = stored[tensor.name]
        shape = tuple(int(size) for size in reversed(found.shape))
        if (shape, found.tensor_type) != (tensor.need.shape, tensor.kind):
            failures.append(f"{path.name}: {tensor.name} is {found.tensor_type.name} {list(shape)}")
            continue
        error = relative_error(found, tensor, checkpoint=checkpoint)
        errors.setdefault(tensor.kind.name, []).append(error)
        if not error <= LARGEST_ERROR[tensor.kind.name]:
            failures.append(f"{path.name}: {tensor.name} has an error of {error:.2g}, too much for {tensor.kind.name}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"{path.name}, type")
    for column in ("tensors", "mean error", "largest", "allowed"):
        table.add_column(column, justify="right")
    for kind, found_errors in sorted(errors.items()):
        mean, largest = sum(found_errors) / len(found_errors), max(found_errors)
        table.add_row(kind, str(len(found_errors)), f"{mean:.2e}", f"{largest:.2e}", f"{LARGEST_ERROR[kind]:g}")
    console.print(table)
    return failures


def relative_error(stored: Any, tensor: GgufTensor, *, checkpoint: Checkpoint) -> float:
    """Of a file's tensor, back in the checkpoint's order."""
    import torch
    from gguf.quants import dequantize

    expected = checkpoint.weights.read(tensor.need)
    found = torch.from_numpy(dequantize(stored.data, tensor.kind).copy()).reshape(expected.shape)
    found = tensor.in_checkpoint_order(found)
    difference = size = 0.0
    for ours, theirs in zip(found.split(ROWS_AT_ONCE), expected.split(ROWS_AT_ONCE), strict=True):
        difference += float((ours - theirs.to(torch.float32)).square().sum())
        size += float(theirs.to(torch.float32).square().sum())
    return (difference / size) ** 0.5 if size else difference**0.5


def compare_next_tokens(console: Console, path: Path, *, checkpoint: Checkpoint, quantization: str) -> list[str]:
    """What llama.cpp says otherwise than the float model. Nothing, and a note, where it is not installed."""
    if find_spec("llama_cpp") is None:
        console.print("[dim]llama-cpp-python is not installed: llama.cpp's answers are not compared[/]")
        return []
    found = list(next_tokens(path, checkpoint, prompts=PROMPTS))
    kl = sum(token.kl for token in found) / len(found)
    same = sum(token.top1 for token in found)
    console.print(f"next tokens by llama.cpp: {same} of {len(found)} the same, mean KL {kl:.2e}")
    limit = LARGEST_KL[quantization]
    return [] if kl <= limit else [f"{path.name}: llama.cpp's mean KL {kl:.3g} is above {limit}"]


def next_tokens(path: Path, checkpoint: Checkpoint, *, prompts: tuple[str, ...] | list[str]) -> Iterator[NextToken]:
    """Both models' next token after each prompt; the float model is run block by block."""
    import torch
    from llama_cpp import Llama
    from torch.nn.functional import kl_div, log_softmax

    from llava_export.reference import FloatReference

    llama = Llama(str(path), n_ctx=512, logits_all=True, verbose=False)
    try:
        for prompt in prompts:
            ids = llama.tokenize(prompt.encode(), add_bos=True, special=False)
            model = checkpoint.build_model(max_context_len=len(ids))
            reference = FloatReference(model, weights=checkpoint.weights)
            expected = log_softmax(reference.decode(reference.embed(ids), 0), -1)
            llama.reset()
            llama.eval(ids)
            found = log_softmax(torch.tensor(llama.scores[len(ids) - 1]), -1)
            kl = float(kl_div(found, expected, log_target=True, reduction="sum"))
            yield NextToken(prompt, bool(found.argmax() == expected.argmax()), kl)
    finally:
        llama.close()


if __name__ == "__main__":
    main()
