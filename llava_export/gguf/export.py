"""From a checkpoint to the two GGUF files for llama.cpp: the language model, and the mmproj.

The mmproj has vision tower and projector. The name is llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.prompt import Prompt, stop_ids
from llava_export.errors import ExportError
from llava_export.families.language_models import LANGUAGE_MODELS
from llava_export.gguf.tensors import GgufFile, GgufTensor, write_file
from llava_export.gguf.text import check_text, text_tensors, write_text_metadata
from llava_export.gguf.vision import LLAMA_CPP_GRID, check_vision, vision_tensors, write_vision_metadata
from llava_export.gguf.vocabulary import MAX_ENDS
from llava_export.stages import Stages
from llava_export.staging import staged
from llava_export.system import free_disk, readable_size

NUM_STAGES = 3  # "open checkpoint" included


def text_name(quantization: str) -> str:
    """Return the file name of a language model of this quantization."""
    return f"ggml-model-{quantization}.gguf"


def mmproj_name(mmproj_type: str) -> str:
    """Return the file name of an mmproj of this type."""
    return f"mmproj-model-{mmproj_type}.gguf"


def planned_tensors(
    checkpoint: Checkpoint, *, quantization: str, mmproj_type: str
) -> tuple[list[GgufTensor], list[GgufTensor]]:
    """Return the tensors of the language model's file and of the mmproj.

    Raises ``ExportError`` for a model that llama.cpp cannot compute.
    """
    check_text(checkpoint.config)
    check_vision(checkpoint.config)
    sources = checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1))
    return (
        text_tensors(sources, config=checkpoint.config, quantization=quantization),
        vision_tensors(sources, config=checkpoint.config, quantization=mmproj_type),
    )


def export_gguf(
    checkpoint: Checkpoint,
    *,
    quantization: str,
    mmproj_type: str,
    prompt: Prompt,
    output_dir: Path,
    stages: Stages,
    force: bool = False,
    overwrite: bool = False,
) -> Mapping[str, int]:
    """Write both files to ``output_dir``. Return their names with their sizes in bytes. ``prompt`` is for chats.

    Files that an earlier export made are replaced, others only with ``overwrite``. ``force`` goes on where the disk
    seems too small. Raises a ``UserError`` for the user's mistakes. Then nothing is left behind.
    """
    text, vision = planned_tensors(checkpoint, quantization=quantization, mmproj_type=mmproj_type)
    _check_disk(text + vision, output_dir=output_dir, force=force)
    config = checkpoint.config
    assert config.vision is not None and config.projector is not None
    if config.projector.halves_grid and (side := config.vision.grid_side) != LLAMA_CPP_GRID:
        stages.note(
            f"llama.cpp's {config.projector.type} is written for {LLAMA_CPP_GRID} by {LLAMA_CPP_GRID} patches, and "
            f"this model has {side} by {side}: llama.cpp can run its language model, but not encode images"
        )
    images = checkpoint.images
    if images.aspect_ratio != "pad" or images.resize != images.size:
        stages.note(f"llama.cpp pads images to a square; those of this checkpoint are {images.text()}")
    if (length := config.text.max_context_len) < config.text.max_position_embeddings:
        stages.note(
            f"attention sees {length} positions (sliding_window), and llama.cpp's all: run it with --ctx-size {length} "
            "or less"
        )
    eos_ids = stop_ids(prompt, checkpoint)
    if len(eos_ids) > MAX_ENDS:
        rest = ", ".join(map(str, eos_ids[MAX_ENDS:]))
        stages.note(f"a GGUF file names {MAX_ENDS} tokens that end an answer: llama.cpp will not stop at {rest}")
    write_text = partial(
        write_text_metadata,
        config=config,
        prompt=prompt.chat,
        prompt_source=prompt.source,
        tokenizer=checkpoint.tokenizer,
        eos_ids=eos_ids,
    )
    write_vision = partial(write_vision_metadata, config=config, image_mean=images.mean, image_std=images.std)
    architecture = LANGUAGE_MODELS[config.text.model_type].gguf_architecture
    files = {
        "language model": GgufFile(text_name(quantization), architecture, quantization, text, write_text),
        "mmproj": GgufFile(mmproj_name(mmproj_type), "clip", mmproj_type, vision, write_vision),
    }
    with staged(
        output_dir,
        name="gguf",
        names=[file.name for file in files.values()],
        last=mmproj_name(mmproj_type),
        inputs=checkpoint.paths,
        overwrite=overwrite,
    ) as folder:
        for what, file in files.items():
            with stages.stage(f"write {what}", steps=len(file.tensors)) as step:
                write_file(folder, file, checkpoint=checkpoint, on_tensor=step)
        return {file.name: (folder / file.name).stat().st_size for file in files.values()}


def _check_disk(tensors: list[GgufTensor], *, output_dir: Path, force: bool) -> None:
    """Raise ``ExportError`` if the disk is too small for the files, unless ``force``."""
    wanted, free = sum(tensor.num_bytes for tensor in tensors), free_disk(output_dir)
    if free is not None and wanted > free and not force:
        raise ExportError(
            f"the files take {readable_size(wanted)} of disk in {output_dir}, and {readable_size(free)} are free. "
            "--force exports nevertheless"
        )
