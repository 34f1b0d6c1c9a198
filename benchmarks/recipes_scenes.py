"""Measures what recipes lose on scenes that the built-in models find hard, for docs/benchmarks/recipes_scenes.json.

Everything is computed in torch, without an export. The scenes are those of ``python -m benchmarks.scenes --hard``. Each
model reads question and right answer in one pass (``benchmarks/forced.py``), and is compared with its float model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from torch import Tensor

from benchmarks.forced import (
    Question,
    Reading,
    answer_logits,
    image_features,
    loaded_model,
    questions_about,
    reading,
)
from benchmarks.gguf_weights import rounded_checkpoint
from benchmarks.measuring import ROOT
from llava_export.builtin import CHECKPOINTS
from llava_export.calibration import sensitivity
from llava_export.calibration.budget import least, most, spent
from llava_export.calibration.calibrate import calibrate_with
from llava_export.calibration.data import calibration_rows
from llava_export.calibration.samples import open_samples
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.cli.flags import DEFAULT_SAMPLES
from llava_export.cli.terminal import new_console, silence_libraries
from llava_export.evaluate.figures import mcnemar
from llava_export.evaluate.intervals import proportion, ratio
from llava_export.models.llava import LlavaModel
from llava_export.pte.plan import DEFAULT_LENGTH
from llava_export.recipe import DEFAULT_RECIPE, RECIPES, Recipe
from llava_export.stages import Stages
from llava_export.staging import write_whole
from llava_export.streams import DecoderBlocks
from llava_runner.arguments import ArgumentParser, path, positive_int, run_command
from training.questions import HELD_OUT_SEED
from training.scenes import HARD

RESULTS = ROOT / "docs" / "benchmarks" / "recipes_scenes.json"
SCENES = 500
DIGITS = 7  # after the point, in the file
DEFAULT = RECIPES[DEFAULT_RECIPE]
DESCRIPTION = """Measure what recipes lose on hard scenes, with the built-in models and in torch,
and write docs/benchmarks/recipes_scenes.json. What is not measured again stays
there, if it is of as many scenes.
"""


@dataclass(frozen=True)
class Candidate:
    """What is measured, by a name for tables: a recipe, or llama.cpp's types for a language model (``gguf``).

    With ``growth`` linears of 8 bits may take this share of the default recipe's bytes more.
    """

    name: str
    recipe: Recipe = DEFAULT
    growth: float = 0.0
    gguf: str | None = None

    @property
    def vision(self) -> str:
        """What decides an image's features: the scheme of the vision tower, or that its file is GGUF."""
        return "GGUF" if self.gguf else self.recipe.vision


CANDIDATES = (
    Candidate("fp32", RECIPES["fp32"]),
    Candidate("8da8w", RECIPES["8da8w"]),
    Candidate("8da4w"),
    Candidate(
        "8da4w minmax, group 64, head 4 bits", DEFAULT.with_changes(algorithm="minmax", group_size=64, head="8da4w")
    ),
    Candidate("8da4w gptq", DEFAULT.with_changes(algorithm="gptq")),
    Candidate("8da4w, 5 % more bytes", growth=0.05),
    Candidate("8da4w gptq, 5 % more bytes", DEFAULT.with_changes(algorithm="gptq"), growth=0.05),
    Candidate("q4_0", gguf="q4_0"),
    Candidate("q4_k_m", gguf="q4_k_m"),
    Candidate("q8_0", gguf="q8_0"),
)


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.recipes_scenes", description=DESCRIPTION)
    add = parser.add_argument
    add("--scenes", type=positive_int, default=SCENES, metavar="N", help="how many (default: %(default)s)")
    add("--models", nargs="+", choices=CHECKPOINTS, default=tuple(CHECKPOINTS), metavar="NAME", help="only these")
    names = [it.name for it in CANDIDATES]
    add("--only", nargs="+", choices=names, default=names, metavar="RECIPE", help="only these, by their names there")
    add("--output", type=path, default=RESULTS, metavar="FILE", help="where to write (default: that file)")
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Measure and write as the command line says."""
    silence_libraries()
    console = new_console()
    rows: list[dict[str, Any]] = []
    candidates = [it for it in CANDIDATES if it.name in arguments.only]
    for name in arguments.models:
        for row, seconds in measured(name, scenes=arguments.scenes, candidates=candidates):
            rows.append(row)
            console.print(
                f"{row['model']}, {row['recipe']}: {row['accuracy']:.1%} right (p {row['p_value']:.2g}), "
                f"KL {row['kl']:.4f}, the same token {row['top1']:.1%}, {row['bytes']:,} bytes; {seconds:.0f} s",
                soft_wrap=True,
            )
    before = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    write_whole(arguments.output, json.dumps(merged(before, rows), indent=2) + "\n")


def merged(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of a file with those that were measured again, by model and in the order of the candidates."""
    scenes = rows[0]["scenes"]
    found = {(row["model"], row["recipe"]): row for row in (*before, *rows) if row["scenes"] == scenes}
    keys = [(name, candidate.name) for name in CHECKPOINTS for candidate in CANDIDATES]
    return [found[key] for key in keys if key in found]


def measured(
    name: str, *, scenes: int, candidates: Sequence[Candidate] = CANDIDATES
) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield for each candidate its figures with a built-in model on so many scenes, and the seconds that it took."""
    torch.set_num_threads(1)  # the models are small: fastest so, and always the same
    checkpoint = open_checkpoint(name)
    questions = questions_about(range(HELD_OUT_SEED, HELD_OUT_SEED + scenes), HARD, checkpoint)
    max_len = max(sum(map(len, it.ids)) + len(it.answer) for it in questions) + checkpoint.config.num_image_tokens
    load = partial(loaded_model, max_len=max_len)
    features = Features(questions)
    expected = list(_logits(load(checkpoint), questions, features.of("float", load(checkpoint))))
    floats = list(map(reading, expected, expected, questions))
    for candidate in candidates:
        start = time.perf_counter()
        model, size = built(candidate, checkpoint, load=load)
        found = _logits(model, questions, features.of(candidate.vision, model))
        readings = list(map(reading, found, expected, questions))
        row = {"model": name, "recipe": candidate.name, "bytes": size, **figures(readings, floats)}
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


def built(candidate: Candidate, checkpoint: Checkpoint, *, load: Callable[..., LlavaModel]) -> tuple[LlavaModel, int]:
    """Return a candidate's model, as ``load`` loads it, and the bytes that its weights take in a file."""
    if candidate.gguf:
        rounded, size = rounded_checkpoint(checkpoint, quantization=candidate.gguf)
        return load(rounded), size
    recipe = fitted(candidate, checkpoint)
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


def fitted(candidate: Candidate, checkpoint: Checkpoint) -> Recipe:
    """Return a candidate's recipe, fitted to a model. Its growth is spent as ``llava export --budget`` does."""
    shapes = checkpoint.build_model(max_context_len=1)
    if not candidate.growth:
        return candidate.recipe.fitted(shapes)
    coarse = least(candidate.recipe, shapes)
    rows = calibration_rows(
        checkpoint,
        open_samples(None),
        prompt=find_prompt(checkpoint),
        max_len=checkpoint.config.num_image_tokens + sensitivity.LONGEST_TEXT,
        embed=DecoderBlocks(checkpoint, max_len=1).embed,
        limit=sensitivity.SAMPLES,
    )
    kl = sensitivity.measure(checkpoint, coarse, rows)
    limit = int((1 + candidate.growth) * stored_bytes(DEFAULT.fitted(shapes), checkpoint))
    room = limit - stored_bytes(coarse, checkpoint)
    return spent(coarse, most(candidate.recipe, shapes), shapes, kl, room=room)


def stored_bytes(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Return the bytes that a model's weights take in a program."""
    return sum(recipe.stored_bytes(checkpoint.build_model(max_context_len=1)).values())


def _logits(model: LlavaModel, questions: Sequence[Question], features: Sequence[Tensor]) -> Iterator[Tensor]:
    return map(partial(answer_logits, model), questions, features)


if __name__ == "__main__":
    main()
