"""Verifies GGUF files: do they hold what their checkpoint holds?

Both files are read back. Every key that llama.cpp needs, every name, shape and type is checked. What the keys say of
the model, and every tensor's values, are compared with the checkpoint, after the order of the rows of q and k is
restored where llama.cpp has another. Where llama-cpp-python is installed (extra ``llama``), llama.cpp loads the
language model, and its next tokens are compared, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize

from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.errors import ExportError
from llava_export.families.language_models import LANGUAGE_MODELS
from llava_export.gguf.comparison import FileComparison, KindErrors, open_gguf, value
from llava_export.gguf.export import planned_tensors
from llava_export.gguf.next_tokens import LARGEST_KL, PROMPTS, next_tokens
from llava_export.gguf.tensors import PART_KEYS, SOURCE, GgufTensor
from llava_export.gguf.text import PROMPT_SOURCE, write_text_metadata
from llava_export.gguf.types import FILE_TYPES
from llava_export.gguf.verify_tokens import ADD_BOS, compare_prompt, compare_tokens
from llava_export.gguf.vision import write_vision_metadata
from llava_runner.documents import shown

# Largest relative error that a type may have: the root mean square of the difference, divided by that of the weights.
# Rounding normally distributed weights gives about two thirds of it. F16 is an exception: small values may be denormal.
LARGEST_ERROR = {
    "F32": 0.0, "F16": 1e-3, "Q8_0": 0.01, "Q6_K": 0.03, "Q5_K": 0.05, "Q5_1": 0.06, "Q5_0": 0.07, "Q4_K": 0.1,
    "Q4_0": 0.13,
}  # fmt: skip
TEXT_KEYS = (  # {} stands for the architecture
    "general.architecture", "general.file_type", "{}.vocab_size", "{}.context_length", "{}.embedding_length",
    "{}.block_count", "{}.feed_forward_length", "{}.attention.head_count", "{}.attention.head_count_kv",
    "{}.attention.layer_norm_rms_epsilon", "{}.rope.dimension_count", "{}.rope.freq_base",
    "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
    "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.chat_template",
)  # fmt: skip
MMPROJ_KEYS = (
    "general.architecture", "general.file_type", "clip.has_vision_encoder", "clip.projector_type", "clip.use_gelu",
    "clip.use_silu", "clip.vision.image_size", "clip.vision.patch_size", "clip.vision.embedding_length",
    "clip.vision.feed_forward_length", "clip.vision.block_count", "clip.vision.attention.head_count",
    "clip.vision.attention.layer_norm_epsilon", "clip.vision.projection_dim", "clip.vision.feature_layer",
    "clip.vision.image_mean", "clip.vision.image_std",
)  # fmt: skip
COMPARED_APART = {
    "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.chat_template", PROMPT_SOURCE, ADD_BOS,
    *(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom")),
}  # fmt: skip
ROWS_AT_ONCE = 1024


def check(
    folder: Path, *, model: str | None = None, parts: Mapping[str, str | None] | None = None
) -> Iterator[FileComparison]:
    """Compare the files of a folder with their checkpoint, and yield a comparison for each.

    ``model`` is the checkpoint, and ``parts`` are further arguments of ``open_checkpoint``; None stands for what the
    files name. Raises a ``UserError`` for what cannot be read.
    """
    texts, mmprojs = _files(folder, "ggml-model-"), _files(folder, "mmproj-model-")
    checkpoint = None
    for path in (*texts, *mmprojs):
        is_text = path in texts
        comparison = FileComparison(path.name)
        reader = open_gguf(path)
        architecture = _architecture(reader)
        keys = [key.format(architecture) for key in (TEXT_KEYS if is_text else MMPROJ_KEYS)]
        if lacking := [key for key in keys if key not in reader.fields]:
            comparison.fail(f"lacks {', '.join(lacking)}")
            yield comparison
            continue
        if checkpoint is None:
            checkpoint = _checkpoint(reader, model=model, parts=parts or {})
        kind = value(reader, "general.file_type", int)
        quantization = next((name for name, number in FILE_TYPES.items() if number == kind), None)
        if quantization is None:
            raise ExportError(f"{path} has tensors of the type {kind}, which this version does not write")
        text, vision = planned_tensors(
            checkpoint,
            quantization=quantization if is_text else "f16",
            mmproj_type="f16" if is_text else quantization,
        )
        if is_text:
            compare_tokens(comparison, reader, checkpoint=checkpoint)
            compare_prompt(comparison, reader, checkpoint=checkpoint)
        compare_metadata(comparison, reader, expected_metadata(checkpoint, is_text=is_text))
        compare_values(comparison, reader, text if is_text else vision, checkpoint=checkpoint)
        if is_text:
            compare_next_tokens(comparison, path, checkpoint=checkpoint, quantization=quantization)
        yield comparison


def _architecture(reader: GGUFReader) -> str:
    """Return the architecture that a file names, or "llama" if it names none."""
    key = "general.architecture"
    return value(reader, key, str) if key in reader.fields else "llama"


def _checkpoint(reader: GGUFReader, *, model: str | None, parts: Mapping[str, str | None]) -> Checkpoint:
    """Open the checkpoint that a file names, or the ``model`` in its place. Raises a ``UserError``."""
    given = dict(parts)
    if model is None:
        model = value(reader, SOURCE, str)
        for name, key in PART_KEYS.items():
            if given.get(name) is None and key in reader.fields:
                given[name] = value(reader, key, str)
    return open_checkpoint(model, **given)


def expected_metadata(checkpoint: Checkpoint, *, is_text: bool) -> dict[str, Any]:
    """Return what a file must say of its model, by key. Tokens, ends and prompt are compared on their own."""
    config, images = checkpoint.config, checkpoint.images
    writer = GGUFWriter(None, LANGUAGE_MODELS[config.text.model_type].gguf_architecture if is_text else "clip")
    if is_text:
        write_text_metadata(
            writer,
            config=config,
            prompt=checkpoint.family.prompt,
            prompt_source="",
            tokenizer=checkpoint.tokenizer,
            eos_ids=config.eos_ids,
        )
    else:
        write_vision_metadata(writer, config=config, image_mean=images.mean, image_std=images.std)
    return {key: it.value for key, it in writer.kv_data[0].items() if key not in COMPARED_APART}


def compare_metadata(comparison: FileComparison, reader: GGUFReader, expected: Mapping[str, Any]) -> None:
    """Compare what a file says of its model with what it must say. Numbers are float32 in it."""
    rope = f"{_architecture(reader)}.rope."
    for key in sorted(key for key in reader.fields.keys() - expected.keys() if key.startswith(rope)):
        comparison.fail(f"says {key}, which does not follow from the checkpoint")
    for key, wanted in expected.items():
        if key not in reader.fields:
            comparison.fail(f"lacks {key}")
            continue
        found = value(reader, key, object)
        pairs = list(zip(found, wanted, strict=False)) if isinstance(found, list) else [(found, wanted)]
        length = len(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else 1
        wrong = [(one, other) for one, other in pairs if one != other and not _are_close(one, other)]
        if len(pairs) != length:
            comparison.fail(f"{key} has {len(pairs)} values, and {length} in the checkpoint")
        elif wrong:
            comparison.fail(f"{key} is {shown(wrong[0][0])}, and {shown(wrong[0][1])} in the checkpoint")


def _are_close(one: object, other: object) -> bool:
    """Return True for numbers that are the same in float32."""
    return isinstance(one, float) and isinstance(other, float) and math.isclose(one, other, rel_tol=1e-6)


def compare_values(
    comparison: FileComparison, reader: GGUFReader, planned: list[GgufTensor], *, checkpoint: Checkpoint
) -> None:
    """Compare a file's tensors with the checkpoint's: names, shapes, types and values."""
    stored = {tensor.name: tensor for tensor in reader.tensors}
    if missing := [tensor.name for tensor in planned if tensor.name not in stored]:
        comparison.fail(f"lacks {', '.join(missing[:4])} ({len(missing)} tensors)")
    if extra := sorted(stored.keys() - {tensor.name for tensor in planned}):
        comparison.fail(f"also has {', '.join(extra[:4])} ({len(extra)} tensors)")
    errors: dict[str, list[float]] = {}
    for tensor in planned:
        if tensor.name not in stored:
            continue
        found = stored[tensor.name]
        shape = tuple(int(size) for size in reversed(found.shape))
        if (shape, found.tensor_type) != (tensor.source.shape, tensor.kind):
            comparison.fail(f"{tensor.name} is {found.tensor_type.name} {list(shape)}")
            continue
        error = relative_error(found, tensor, checkpoint=checkpoint)
        errors.setdefault(tensor.kind.name, []).append(error)
        if not error <= LARGEST_ERROR[tensor.kind.name]:
            comparison.fail(f"{tensor.name} has an error of {error:.2g}, too much for {tensor.kind.name}")
    comparison.kinds += [
        KindErrors(kind, len(found), sum(found) / len(found), max(found), LARGEST_ERROR[kind])
        for kind, found in sorted(errors.items())
    ]


def relative_error(stored: Any, tensor: GgufTensor, *, checkpoint: Checkpoint) -> float:
    """Return the relative error of a file's tensor, as ``LARGEST_ERROR`` defines it."""
    expected = tensor.read(checkpoint.weights)
    found = torch.from_numpy(dequantize(stored.data, tensor.kind).copy()).reshape(expected.shape)
    found = tensor.in_checkpoint_order(found)
    difference = size = 0.0
    for ours, theirs in zip(found.split(ROWS_AT_ONCE), expected.split(ROWS_AT_ONCE), strict=True):
        difference += float((ours - theirs.to(torch.float32)).square().sum())
        size += float(theirs.to(torch.float32).square().sum())
    return (difference / size) ** 0.5 if size else difference**0.5


def compare_next_tokens(comparison: FileComparison, path: Path, *, checkpoint: Checkpoint, quantization: str) -> None:
    """Compare llama.cpp's next tokens with the float model's. Only a note is added where it is not installed."""
    if find_spec("llama_cpp") is None:
        comparison.notes.append("llama-cpp-python is not installed: llama.cpp's answers are not compared")
        return
    try:
        found = list(next_tokens(path, checkpoint, prompts=PROMPTS))
    except ExportError as error:
        comparison.fail(str(error))
        return
    kl = sum(token.kl for token in found) / len(found)
    same = sum(token.top1 for token in found)
    comparison.notes.append(f"next tokens by llama.cpp: {same} of {len(found)} the same, mean KL {kl:.2e}")
    limit = LARGEST_KL[quantization]
    if not kl <= limit:
        comparison.fail(f"llama.cpp's mean KL {kl:.3g} is above {limit}")


def _files(folder: Path, prefix: str) -> list[Path]:
    """Return the files of a folder that begin with ``prefix``. Raises ``ExportError`` if there are none."""
    if not (found := sorted(folder.glob(f"{prefix}*.gguf"))):
        raise ExportError(f"{folder} has no {prefix}*.gguf")
    return found
