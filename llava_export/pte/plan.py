"""The plan of an export: the checkpoint opened, every choice checked, and an estimate of what the export needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from llava_export.calibration.samples import Sample, open_samples, spread
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import Prompt, find_prompt
from llava_export.config import LlavaConfig
from llava_export.errors import ExportError
from llava_export.pte.options import DEVICES, STAMPED, Options
from llava_export.pte.preflight import Estimate, calibration_memory, estimate
from llava_export.recipe import GPTQ

DEFAULT_LENGTH = 768
CALIBRATION_STAGES = 2  # of a recipe that calibrates
NUM_STAGES = 8  # of an export with a golden record, "open checkpoint" included; the same for either lowering


@dataclass(frozen=True)
class Plan:
    """An export that can be done as asked. The lengths are in positions, and no longer None.

    ``samples`` are what the recipe calibrates with, and none if it does not.
    """

    checkpoint: Checkpoint
    prompt: Prompt
    options: Options
    max_seq_len: int
    max_context_len: int
    estimate: Estimate
    samples: list[Sample]


def plan(model: str, options: Options, **parts: str | None) -> Plan:
    """Open and check the checkpoint of ``model``. Write nothing. Raises a ``UserError`` for the user's mistakes.

    ``parts`` are further arguments of ``open_checkpoint``.
    """
    return plan_for(open_checkpoint(model, **parts), options)


def plan_for(checkpoint: Checkpoint, options: Options) -> Plan:
    """Return the plan for a checkpoint that is open. Raises a ``UserError`` for the user's mistakes."""
    prompt = find_prompt(checkpoint, given=options.prompt_template)
    max_seq_len, max_context_len = _lengths(checkpoint.config, options)
    shapes = checkpoint.build_model(max_context_len=1)
    options = replace(options, recipe=options.recipe.fitted(shapes))
    options.recipe.check(shapes)
    samples = _samples(options)
    needed = estimate(
        shapes,
        config=checkpoint.config,
        recipe=options.recipe,
        max_context_len=max_context_len,
        stamped=options.lowering == STAMPED,
        golden=options.golden,
    )
    if samples:
        positions = len(spread(samples, options.calibration_samples)) * max_seq_len
        calibration = calibration_memory(shapes, config=checkpoint.config, positions=positions)
        needed = replace(needed, memory=max(needed.memory, calibration))
    return Plan(checkpoint, prompt, options, max_seq_len, max_context_len, needed, samples)


def _samples(options: Options) -> list[Sample]:
    """Return the samples that a recipe calibrates with. Raises a ``UserError`` if they cannot be had."""
    if not options.recipe.calibrates:
        if options.device != DEVICES[0]:
            raise ExportError(
                f"--device {options.device} is for --algorithm {GPTQ}; the rest of an export is computed here"
            )
        return []
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ExportError("--device cuda: torch finds no GPU here")
    return open_samples(options.calibration_data)


def _lengths(config: LlavaConfig, options: Options) -> tuple[int, int]:
    """Return ``max_seq_len`` and ``max_context_len``, checked.

    A length that is not given is 768 positions, or what the model or the other length allows.
    """
    limit = config.text.max_position_embeddings
    context_len = options.max_context_len or min(max(DEFAULT_LENGTH, options.max_seq_len or 0), limit)
    seq_len = options.max_seq_len or min(DEFAULT_LENGTH, context_len)
    if context_len > limit:
        raise ExportError(f"a context of {context_len} is beyond the {limit} positions the model was trained for")
    if not 1 <= seq_len <= context_len:
        raise ExportError(f"--max-seq-len {seq_len} must be from 1 to --max-context-len, {context_len}")
    num_image_tokens = config.num_image_tokens
    if seq_len < num_image_tokens:
        raise ExportError(f"--max-seq-len {seq_len} cannot hold an image, which takes {num_image_tokens} positions")
    return seq_len, context_len
