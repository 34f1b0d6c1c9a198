"""Measures recipes and llama.cpp's types on a text, all of them against one reading of the float model."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.recipes.entries import BUDGET, DEFAULT, Entry, LlamaCppEntry
from benchmarks.recipes.results import RecipeResults, TextKey, key_of
from llava_export.calibration.calibrate import calibrate_with
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.weights import CheckpointTensor
from llava_export.corpus import open_corpus
from llava_export.evaluate.text import FloatReading, TextFigures
from llava_export.models.names import TEXT_DECODER, TOKEN_EMBEDDING, is_in
from llava_export.pte.budget import spend_budget
from llava_export.pte.options import Options
from llava_export.pte.plan import plan_for
from llava_export.stages import StageRecord, Stages
from llava_export.streams import DecoderBlocks

LAYERS = f"{TEXT_DECODER}.layers"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """What is read: a text to measure on, and what recipes are calibrated with, all or at most so many samples."""

    text: Path
    windows: int
    window_len: int
    calibration: Path
    calibration_samples: int


class SaidStages(Stages):
    """Stages that say how long each took."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def show_end(self, record: StageRecord) -> None:
        """Say what is done."""
        self._say(f"  {record.name}: {record.seconds:.1f} s")


class Measurer:
    """Measures entries on the language model of one checkpoint. The float model is read once, when it is needed."""

    def __init__(self, checkpoint: Checkpoint, data: Data, *, scratch: Path, device: str, say: Say) -> None:
        self.checkpoint, self.data, self.device = checkpoint, data, device
        self._scratch = scratch
        self._say = say
        self._windows = open_corpus(data.text, checkpoint).windows(data.windows, length=data.window_len)
        self._model = checkpoint.build_model(max_context_len=1)
        self._floats: FloatReading | None = None

    def key(self, entry: Entry | LlamaCppEntry) -> dict[str, Any]:
        """Return what the figures of an entry depend on."""
        text = TextKey.of(self.data.text, self._windows)
        if isinstance(entry, LlamaCppEntry):
            return key_of(text, quantization=entry.name)
        key = key_of(text, flags=entry.flags, budget=BUDGET if entry.has_budget else None)
        if entry.recipe.calibrates or entry.has_budget:
            key["calibration"] = {"name": self.data.calibration.name, "samples": self.data.calibration_samples}
        return key

    def measure(self, entry: Entry | LlamaCppEntry) -> dict[str, Any]:
        """Return what the language model takes with an entry, and how it does, as JSON has it."""
        start = time.perf_counter()
        found = self._llama_cpp(entry) if isinstance(entry, LlamaCppEntry) else self._recipe(entry)
        return {**found, "device": device_name(self.device), "seconds": round(time.perf_counter() - start, 1)}

    def _recipe(self, entry: Entry) -> dict[str, Any]:
        plan = plan_for(self.checkpoint, self._options(entry))
        stages = SaidStages(self._say)
        if plan.budget:
            plan, _ = spend_budget(plan, stages=stages)
        recipe = plan.options.recipe
        if not recipe.calibrates:
            figures = self._figures(self._blocks(self.checkpoint, recipe=recipe))
        else:
            store = calibrate_with(
                plan.samples,
                self.checkpoint,
                recipe,
                prompt=plan.prompt,
                max_len=plan.max_seq_len,
                limit=self.data.calibration_samples,
                folder=self._scratch / "calibrated" / entry.name,
                device=self.device,
                stages=stages,
            )
            figures = self._figures(self._blocks(self.checkpoint, recipe=recipe, calibrated=store.layer))
            store.remove()
        return {
            "recipe": recipe.to_dict(),
            "program_bytes": plan_for(self.checkpoint, Options(recipe=recipe)).estimate.program,
            **sizes(recipe.stored_bytes(self._model), self._shapes()),
            **figures.to_dict(),
        }

    def _llama_cpp(self, entry: LlamaCppEntry) -> dict[str, Any]:
        from benchmarks.recipes.gguf_weights import rounded_checkpoint, text_file

        stored = {
            tensor.source.fqn: tensor.num_bytes
            for tensor in text_file(self.checkpoint, entry.name)
            if isinstance(tensor.source, CheckpointTensor)
        }
        numbers = {tensor.fqn: tensor.shape for tensor in self.checkpoint.weights.tensors(self._model)}
        figures = self._figures(self._blocks(rounded_checkpoint(self.checkpoint, entry.name)))
        return {**sizes(stored, {fqn: torch.Size(shape) for fqn, shape in numbers.items()}), **figures.to_dict()}

    def _options(self, entry: Entry) -> Options:
        """Return what an export of an entry would be told."""
        if not (entry.recipe.calibrates or entry.has_budget):
            return Options(recipe=entry.recipe)
        default = plan_for(self.checkpoint, Options(recipe=DEFAULT.recipe)).estimate.program
        return Options(
            recipe=entry.recipe,
            budget=int(BUDGET * default) if entry.has_budget else None,
            calibration_data=self.data.calibration,
            calibration_samples=self.data.calibration_samples,
            device=self.device,
        )

    def _blocks(self, checkpoint: Checkpoint, **choices: Any) -> DecoderBlocks:
        return DecoderBlocks(checkpoint, max_len=len(self._windows[0]), device=self.device, **choices)

    def _figures(self, blocks: DecoderBlocks) -> TextFigures:
        if self._floats is None:
            self._floats = FloatReading(self.checkpoint, self._windows, device=self.device)
        return self._floats.compared_with(blocks)

    def _shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of the model's parameters by their names."""
        return {name: parameter.shape for name, parameter in self._model.named_parameters()}


def measure_all(
    entries: Sequence[Entry | LlamaCppEntry], measurer: Measurer, results: RecipeResults, *, again: bool, say: Say
) -> None:
    """Measure entries that the results do not have yet, and put each into the file as soon as it is there."""
    results.found["checkpoint"] = Path(measurer.checkpoint.name).name
    for entry in entries:
        key = measurer.key(entry)
        if results.has(entry.name, key) and not again:
            say(f"{entry.name}: is there")
            continue
        say(f"{entry.name} ...")
        found = measurer.measure(entry)
        results.add(entry.name, key, found)
        say(
            f"{entry.name}: {found['bytes'] / 1e6:.1f} MB, perplexity {found['perplexity']['value']:.2f}, KL "
            f"{found['kl']['value']:.4f}, same top-1 {found['top1']['value']:.1%}, {found['seconds']:.0f} s"
        )


def sizes(stored: dict[str, int], shapes: dict[str, torch.Size]) -> dict[str, Any]:
    """Return the bytes of the language model, and the bits of a weight in its layers' linears, scales included.

    ``stored`` has the bytes of each of its tensors, and ``shapes`` their shapes, by their names.
    """
    text = {name for name in stored if is_in(name, TOKEN_EMBEDDING) or is_in(name, TEXT_DECODER)}
    matrices = [name for name in text if is_in(name, LAYERS) and len(shapes[name]) == 2]
    weights = sum(shapes[name].numel() for name in matrices)
    return {
        "bytes": sum(stored[name] for name in text),
        "bits": 8 * sum(stored[name] for name in matrices) / weights,
    }


def device_name(device: str) -> str:
    """Return what computed, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {platform.machine()}"
