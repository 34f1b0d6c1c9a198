"""Measures what recipes lose on scenes that the built-in models find hard.

Everything is computed in torch, without an export. The scenes are those of ``python -m benchmarks.scenes --hard``. Each
model reads question and right answer in one pass (``forced.py``), and is compared with its float model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.recipes.entries import BUDGET, DEFAULT, ENTRIES, Entry, LlamaCppEntry
from benchmarks.recipes.forced import (
    Question,
    Reading,
    answer_logits,
    image_features,
    loaded_model,
    questions_about,
    reading,
)
from benchmarks.recipes.gguf_weights import rounded_checkpoint, stored_in_gguf
from llava_export.builtin import CHECKPOINTS
from llava_export.calibration import sensitivity
from llava_export.calibration.budget import least, most, spent
from llava_export.calibration.calibrate import calibrate_with
from llava_export.calibration.data import read_samples
from llava_export.calibration.samples import open_samples
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.cli.flags import DEFAULT_SAMPLES
from llava_export.evaluate.figures import mcnemar
from llava_export.evaluate.intervals import proportion, ratio
from llava_export.models.llava import LlavaModel
from llava_export.pte.plan import DEFAULT_LENGTH
from llava_export.recipe import AWQ_GPTQ, CALIBRATED, Recipe
from llava_export.stages import Stages
from llava_export.staging import write_whole
from training.questions import HELD_OUT_SEED
from training.scenes import HARD

SCENES = 500
DIGITS = 7  # after the point, in the file
# What is measured, out of all entries: those whose loss could show.
NAMES = (
    *("fp32", "8da8w", DEFAULT.name, "former-default", *CALIBRATED, "budget", f"budget-{AWQ_GPTQ}"),
    *("q4_0", "q4_k_m", "q8_0"),
)


def measure_scenes(names: Sequence[str], *, results: Path, say: Callable[[str], None]) -> None:
    """Measure entries on ``SCENES`` scenes with each built-in model. Put the figures into the file of results.

    What is not measured again stays there, if it is of as many scenes.
    """
    for model in CHECKPOINTS:
        for row, seconds in measured(model, scenes=SCENES, entries=[ENTRIES[name] for name in names]):
            before = json.loads(results.read_text()) if results.exists() else []
            write_whole(results, json.dumps(merged(before, [row]), indent=2) + "\n")
            say(
                f"{row['model']}, {row['recipe']}: {row['accuracy']:.1%} right (p {row['p_value']:.2g}), "
                f"KL {row['kl']:.4f}, the same token {row['top1']:.1%}, {row['bytes']:,} bytes; {seconds:.0f} s"
            )


def merged(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of a file with those that were measured again, by model and in the order of ``NAMES``."""
    scenes = rows[0]["scenes"]
    found = {(row["model"], row["recipe"]): row for row in (*before, *rows) if row["scenes"] == scenes}
    keys = [(model, name) for model in CHECKPOINTS for name in NAMES]
    return [found[key] for key in keys if key in found]


def measured(
    model_name: str, *, scenes: int, entries: Sequence[Entry | LlamaCppEntry]
) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield for each entry its figures with a built-in model on so many scenes, and the seconds that it took."""
    torch.set_num_threads(1)  # the models are small: fastest so, and always the same
    checkpoint = open_checkpoint(model_name)
    questions = questions_about(range(HELD_OUT_SEED, HELD_OUT_SEED + scenes), HARD, checkpoint)
    max_len = max(sum(map(len, it.ids)) + len(it.answer) for it in questions) + checkpoint.config.num_image_tokens
    load = partial(loaded_model, max_len=max_len)
    features = Features(questions)
    expected = list(_logits(load(checkpoint), questions, features.of("float", load(checkpoint))))
    floats = list(map(reading, expected, expected, questions))
    for entry in entries:
        start = time.perf_counter()
        model, size = built(entry, checkpoint, load=load)
        found = _logits(model, questions, features.of(vision_of(entry), model))
        readings = list(map(reading, found, expected, questions))
        row = {"model": model_name, "recipe": entry.name, "bytes": size, **figures(readings, floats)}
        yield row, time.perf_counter() - start


class Features:
    """The features of all questions' images, computed once for the models whose vision towers are the same."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self._known: dict[str, list[Tensor]] = {}

    def of(self, vision: str, model: LlavaModel) -> list[Tensor]:
        """Return the features of each image. Models with the same ``vision`` have the same."""
        if vision not in self._known:
            self._known[vision] = [image_features(model, question) for question in self._questions]
        return self._known[vision]


def figures(readings: Sequence[Reading], floats: Sequence[Reading]) -> dict[str, Any]:
    """Return the figures of a model for JSON, compared with the float model, which is not rounded.

    ``p_value`` is that of McNemar's exact test: how probable such a difference in right answers is by chance.
    """
    pairs = list(zip(readings, floats, strict=True))
    lost, gained = (sum(a.right != b.right and b.right is right for a, b in pairs) for right in (True, False))
    found = {
        "accuracy": proportion("accuracy", sum(it.right for it in readings), len(readings)),
        "kl": ratio("kl", [(it.kl, it.tokens) for it in readings]),
        "top1": ratio("top1", [(it.agreed, it.tokens) for it in readings]),
    }
    row: dict[str, Any] = {}
    for name, figure in found.items():
        row |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    row = {name: None if value is None else round(value, DIGITS) for name, value in row.items()}
    return {**row, "lost": lost, "gained": gained, "p_value": mcnemar(lost, gained), "scenes": len(readings)}


def vision_of(entry: Entry | LlamaCppEntry) -> str:
    """Return what decides an image's features: the scheme of the vision tower, or that its file is GGUF."""
    return "GGUF" if isinstance(entry, LlamaCppEntry) else entry.recipe.vision


def built(
    entry: Entry | LlamaCppEntry, checkpoint: Checkpoint, *, load: Callable[..., LlavaModel]
) -> tuple[LlavaModel, int]:
    """Return an entry's model, as ``load`` loads it, and the bytes that its weights take in a file."""
    if isinstance(entry, LlamaCppEntry):
        return load(rounded_checkpoint(checkpoint, entry.name)), stored_in_gguf(checkpoint, entry.name)
    recipe = fitted(entry, checkpoint)
    size = stored_bytes(recipe, checkpoint)
    if not recipe.calibrates:
        return load(checkpoint, recipe), size
    with TemporaryDirectory() as scratch:
        store = calibrate_with(
            open_samples(None),
            checkpoint,
            recipe,
            prompt=find_prompt(checkpoint),
            max_len=DEFAULT_LENGTH,
            limit=DEFAULT_SAMPLES,
            folder=Path(scratch) / "layers",
            device="cpu",
            stages=Stages(),
        )
        return load(checkpoint, recipe, calibrated=store.layer), size


def fitted(entry: Entry, checkpoint: Checkpoint) -> Recipe:
    """Return an entry's recipe, fitted to a model. A budget is spent as ``llava export --budget`` does."""
    shapes = checkpoint.build_model(max_context_len=1)
    if not entry.has_budget:
        return entry.recipe.fitted(shapes)
    coarse = least(entry.recipe, shapes)
    rows = read_samples(
        open_samples(None),
        checkpoint,
        prompt=find_prompt(checkpoint),
        max_len=checkpoint.config.num_image_tokens + sensitivity.LONGEST_TEXT,
        limit=sensitivity.SAMPLES,
        stages=Stages(),
    )
    kl = sensitivity.measure(checkpoint, coarse, rows)
    room = int(BUDGET * stored_bytes(DEFAULT.recipe.fitted(shapes), checkpoint)) - stored_bytes(coarse, checkpoint)
    return spent(coarse, most(entry.recipe, shapes), shapes, kl, room=room)


def stored_bytes(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Return the bytes that a model's weights take in a program."""
    return sum(recipe.stored_bytes(checkpoint.build_model(max_context_len=1)).values())


def _logits(model: LlavaModel, questions: Sequence[Question], features: Sequence[Tensor]) -> Iterator[Tensor]:
    return map(partial(answer_logits, model), questions, features)
