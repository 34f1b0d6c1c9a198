"""The plan of an export: the checkpoint opened, every choice checked, and an estimate of what the export needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from llava_export.calibration.budget import least, most
from llava_export.calibration.samples import Sample, open_samples, spread
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint, open_language_model
from llava_export.checkpoint.prompt import Prompt, find_prompt
from llava_export.config import LlavaConfig
from llava_export.errors import ExportError
from llava_export.models.llava import LlavaModel
from llava_export.models.names import VISION_ENCODER
from llava_export.pte.options import STAMPED, Options
from llava_export.pte.preflight import Estimate, calibration_memory, estimate
from llava_export.recipe import CALIBRATING, Recipe
from llava_export.system import DEVICES, check_device

DEFAULT_LENGTH = 768
TEXT_LENGTH = 192  # positions beside the 576 of an image of LLaVA-1.5
STEP = 256  # of larger lengths
CALIBRATION_STAGES = BUDGET_STAGES = 2  # of a recipe that calibrates; of a budget
NUM_STAGES = 8  # of an export with a golden record, "open checkpoint" included; the same for either lowering


# What a program may have beyond its estimate: a share of it, and bytes. Those measured had less than the estimate.
MARGIN = 0.0005, 20_000


@dataclass(frozen=True)
class Budget:
    """Bytes to spend: at most ``room`` more than the plan's recipe takes, on what ``finest`` has in more bits."""

    room: int
    finest: Recipe


@dataclass(frozen=True)
class Plan:
    """An export that can be done as asked. The lengths are in positions, and no longer None.

    ``samples`` are what the recipe calibrates with, or a budget is spent by, and none if there is neither. With a
    ``budget`` the recipe is the smallest there is. What becomes of it takes measuring.
    """

    checkpoint: Checkpoint
    prompt: Prompt
    options: Options
    max_seq_len: int
    max_context_len: int
    estimate: Estimate
    samples: list[Sample]
    budget: Budget | None = None


def plan(model: str, options: Options, **parts: str | None) -> Plan:
    """Open and check the checkpoint of ``model``. Write nothing. Raises a ``UserError`` for the user's mistakes.

    ``parts`` are further arguments of ``open_checkpoint``. Of a language model alone, all but ``base_model`` are None.
    """
    if options.text_only:
        return plan_for(open_language_model(model, base_model=parts.get("base_model")), options)
    return plan_for(open_checkpoint(model, **parts), options)


def plan_for(checkpoint: Checkpoint, options: Options) -> Plan:
    """Return the plan for a checkpoint that is open. Raises a ``UserError`` for the user's mistakes."""
    prompt = find_prompt(checkpoint, given=options.prompt_template)
    max_seq_len, max_context_len = _lengths(checkpoint.config, options)
    shapes = checkpoint.build_model(max_context_len=1)
    needs = partial(
        estimate,
        shapes,
        config=checkpoint.config,
        max_context_len=max_context_len,
        stamped=options.lowering == STAMPED,
        golden=options.golden,
    )
    recipe, budget = options.recipe.fitted(shapes), None
    recipe.check(shapes)
    if options.budget is not None:
        recipe, budget = _within(
            options.budget, options.recipe, shapes, size=lambda recipe: needs(recipe=recipe).program
        )
    options = replace(options, recipe=recipe)
    samples = _samples(options)
    needed = needs(recipe=recipe)
    if recipe.calibrates and options.device == DEVICES[0]:
        positions = len(spread(samples, options.calibration_samples)) * max_seq_len
        calibration = calibration_memory(shapes, config=checkpoint.config, positions=positions)
        needed = replace(needed, memory=max(needed.memory, calibration))
    if budget:
        needed = needed.with_larger_program(budget.room)
    return Plan(checkpoint, prompt, options, max_seq_len, max_context_len, needed, samples, budget)


def _within(
    limit: int, recipe: Recipe, shapes: LlavaModel, *, size: Callable[[Recipe], int]
) -> tuple[Recipe, Budget | None]:
    """Return the recipe for a program of at most ``limit`` bytes, and the budget that is left to spend on it.

    ``size`` returns the estimate of a program's size. Raises ``ExportError`` if the smallest program is too large.
    """
    coarse, fine = least(recipe, shapes), most(recipe, shapes)
    smallest, largest = (_with_margin(size(each)) for each in (coarse, fine))
    if smallest > limit:
        sees_images = hasattr(shapes, VISION_ENCODER)
        others = "so do --embedding-bits 4 and --vision 8da4w" if sees_images else "so does --embedding-bits 4"
        raise ExportError(
            f"a program of {limit:,} bytes is not possible: the least is --budget {_text_of_bytes(smallest)}, with 4 "
            f"bits for all linears of the language model. A larger --group-size takes less, and {others}"
        )
    return (fine, None) if largest <= limit else (coarse, Budget(limit - smallest, fine))


def _with_margin(count: int) -> int:
    """Return the most bytes that a program can have whose estimate is ``count``."""
    share, constant = MARGIN
    return math.ceil(count * (1 + share)) + constant


def _text_of_bytes(count: int) -> str:
    """Return a number of bytes, rounded up, as ``--budget`` takes it."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{math.ceil(count / unit * 100) / 100:.2f}{name}"


def _samples(options: Options) -> list[Sample]:
    """Return the samples that are calibrated or measured with. Raises a ``UserError`` if they cannot be had.

    For a language model alone, those that ship with the project are the ones without images.
    """
    if not options.recipe.calibrates and options.budget is None:
        if options.device != DEVICES[0]:
            raise ExportError(
                f"--device {options.device} is for --algorithm {CALIBRATING} and for --budget; all else is computed on "
                "the CPU"
            )
        return []
    check_device(options.device)
    samples = open_samples(options.calibration_data)
    if not options.text_only:
        return samples
    texts = [sample for sample in samples if sample.image is None]
    if len(texts) < len(samples) and options.calibration_data is not None:
        raise ExportError(
            f"--calibration-data {options.calibration_data} has images, which a language model cannot see"
        )
    return texts


def _default_length(num_image_tokens: int) -> int:
    """Return a length for an image and a talk about it: 768 positions, as for LLaVA-1.5, and more for larger images."""
    return max(DEFAULT_LENGTH, STEP * math.ceil((num_image_tokens + TEXT_LENGTH) / STEP))


def _lengths(config: LlavaConfig, options: Options) -> tuple[int, int]:
    """Return ``max_seq_len`` and ``max_context_len``, checked.

    A length that is not given is ``_default_length``, or what the model or the other length allows.
    """
    limit, default = config.text.max_context_len, _default_length(config.num_image_tokens)
    context_len = options.max_context_len or min(max(default, options.max_seq_len or 0), limit)
    seq_len = options.max_seq_len or min(default, context_len)
    trained = config.text.max_position_embeddings
    if context_len > trained:
        raise ExportError(f"a context of {context_len} is beyond the {trained} positions the model was trained for")
    if context_len > limit:
        raise ExportError(
            f"a context of {context_len} is longer than the window of {limit} positions that attention sees at once "
            f"(sliding_window; the model was trained for {trained} positions): --max-context-len {limit} is the most"
        )
    if not 1 <= seq_len <= context_len:
        raise ExportError(f"--max-seq-len {seq_len} must be from 1 to --max-context-len, {context_len}")
    num_image_tokens = config.num_image_tokens
    if seq_len < num_image_tokens:
        raise ExportError(f"--max-seq-len {seq_len} cannot hold an image, which takes {num_image_tokens} positions")
    return seq_len, context_len
