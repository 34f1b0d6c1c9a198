"""From a checkpoint to GGUF files for llama.cpp: a language model and an mmproj."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.errors import ExportError
from llava_export.package.staging import staged
from llava_export.package.tokenizer import write_tokenizer
from llava_export.preflight import free_disk
from llava_export.stages import Stages, readable_size
from llava_export.targets.gguf.tensors import GgufTensor, write_file
from llava_export.targets.gguf.text import text_tensors, write_text_metadata
from llava_export.targets.gguf.vision import LLAMA_CPP_GRID, check_vision, vision_tensors, write_vision_metadata
from llava_runner import contract

NUM_STAGES = 3  # with "open checkpoint" before them


def text_name(quantization: str) -> str:
    return f"ggml-model-{quantization}.gguf"


def mmproj_name(quantization: str) -> str:
    return f"mmproj-model-{quantization}.gguf"


def planned_tensors(
    checkpoint: Checkpoint, *, quantization: str, mmproj_type: str
) -> tuple[list[GgufTensor], list[GgufTensor]]:
    """Of the language model's file and of the mmproj. Raises ``ExportError`` for a model llama.cpp cannot compute."""
    check_vision(checkpoint.config)
    needs = checkpoint.weights.needs(checkpoint.build_model(max_context_len=1))
    return (
        text_tensors(needs, config=checkpoint.config, quantization=quantization),
        vision_tensors(needs, config=checkpoint.config, quantization=mmproj_type),
    )


def export_gguf(
    checkpoint: Checkpoint, *, quantization: str, mmproj_type: str, output_dir: Path, force: bool, stages: Stages
) -> Mapping[str, int]:
    """Write both files to ``output_dir``; their names with their sizes in bytes.

    Raises a ``UserError`` for whatever the caller can mend; nothing is left behind then.
    """
    text, vision = planned_tensors(checkpoint, quantization=quantization, mmproj_type=mmproj_type)
    _check_disk(text + vision, output_dir=output_dir, force=force)
    config = checkpoint.config
    if config.projector.halves_grid and (side := config.vision.grid_side) != LLAMA_CPP_GRID:
        stages.note(
            f"llama.cpp's {config.projector.type} is written for {LLAMA_CPP_GRID} by {LLAMA_CPP_GRID} patches, and "
            f"this model has {side} by {side}: llama.cpp takes its language model, but no images"
        )
    names = text_name(quantization), mmproj_name(mmproj_type)
    with staged(output_dir, name="gguf", last=names[1]) as folder, TemporaryDirectory() as scratch:
        write_tokenizer(checkpoint.folder, Path(scratch))
        with stages.stage("write language model", steps=len(text)) as step:
            write_file(
                folder / names[0],
                text,
                checkpoint=checkpoint,
                architecture="llama",
                quantization=quantization,
                write_metadata=partial(
                    write_text_metadata,
                    config=config,
                    prompt=checkpoint.family.prompt,
                    tokenizer_model=Path(scratch) / contract.TOKENIZER_MODEL,
                ),
                on_tensor=step,
            )
        with stages.stage("write mmproj", steps=len(vision)) as step:
            write_file(
                folder / names[1],
                vision,
                checkpoint=checkpoint,
                architecture="clip",
                quantization=mmproj_type,
                write_metadata=partial(
                    write_vision_metadata,
                    config=config,
                    image_mean=checkpoint.image_mean,
                    image_std=checkpoint.image_std,
                ),
                on_tensor=step,
            )
        return {name: (folder / name).stat().st_size for name in names}


def _check_disk(tensors: list[GgufTensor], *, output_dir: Path, force: bool) -> None:
    wanted, there = sum(tensor.num_bytes for tensor in tensors), free_disk(output_dir)
    if there is not None and wanted > there and not force:
        raise ExportError(
            f"the files take {readable_size(wanted)} of disk in {output_dir}, and {readable_size(there)} are free. "
            "--force exports nevertheless"
        )
