"""Perplexity, divergence and agreement on a text: a program or a recipe, compared with the float model.

The text is cut into windows, and every model reads the same tokens of them, not its own. Each figure is a mean over all
positions. Its interval is Student's over the means of the windows: neighboring positions depend on each other, windows
that are far apart hardly do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

import torch
from torch import Tensor

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.config import TextConfig
from llava_export.errors import CorpusError
from llava_export.pte.against import check_sizes
from llava_export.quantize.weights import CalibratedBlock
from llava_export.recipe import Recipe
from llava_export.streams import DecoderBlocks, Head, Stream
from llava_runner.program import Program

CONFIDENCE = 0.95  # of the intervals
POSITIONS_AT_ONCE = 128  # whose logits are in memory
LARGEST_EXPONENT = 700.0  # e to the power of more is no float

# Returns the logits ``float32 [end - start, V]`` of a window's positions. Called for all of them, in order.
WindowLogits = Callable[[int, int, int], Tensor]


@dataclass(frozen=True)
class Estimate:
    """A figure, and the ends of its 95 % interval. They are None where one window tells nothing of others."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def mean(cls, values: Sequence[float]) -> Estimate:
        """Return the mean of the windows' values."""
        mean = fmean(values)
        if len(values) < 2:
            return cls(mean, None, None)
        margin = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - margin, mean + margin)

    def map(self, function: Callable[[float], float]) -> Estimate:
        """Return the estimate of a growing function of the figure."""
        return Estimate(
            function(self.value), *(None if end is None else function(end) for end in (self.low, self.high))
        )


@dataclass(frozen=True)
class TextFigures:
    """How a program or recipe does on a text, ``windows`` windows of ``window_len`` tokens.

    ``kl`` is the Kullback-Leibler divergence of the next token from the float model's, in nats, and ``top1`` the
    fraction of positions at which both give the same token the largest probability.
    """

    windows: int
    window_len: int
    float_perplexity: Estimate
    perplexity: Estimate
    kl: Estimate
    top1: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON, which has no infinity: None stands for it."""
        return {name: _finite(value) for name, value in asdict(self).items()}


class FloatReading:
    """What the float model makes of a text, read once. Any number of models can be compared with it.

    ``windows`` are token ids ``[T]``, all of one length. ``on_step`` is told what begins. Raises ``CorpusError`` for
    windows that are too long for the model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Tensor],
        *,
        device: str = "cpu",
        on_step: Callable[[str], None] = lambda name: None,
    ) -> None:
        _check_model_length(windows, checkpoint.config.text)
        self._windows = windows
        self._device = device
        self._blocks = DecoderBlocks(checkpoint, max_len=len(windows[0]), device=device)
        (self._stream,) = _read([self._blocks], windows, on_step=on_step)

    def compared_with(
        self, blocks: DecoderBlocks, *, on_step: Callable[[str], None] = lambda name: None
    ) -> TextFigures:
        """Return the figures of another decoder, on the device of this one."""
        (stream,) = _read([blocks], self._windows, on_step=on_step)
        with blocks.head() as head:
            return self.compared_with_logits(_logits_of(stream, head), on_step=on_step)

    def compared_with_logits(self, found: WindowLogits, *, on_step: Callable[[str], None]) -> TextFigures:
        """Return the figures of whatever computes these logits."""
        with self._blocks.head() as head:
            expected = _logits_of(self._stream, head)
            return _compared(expected, found, self._windows, device=self._device, on_step=on_step)


def evaluate_recipe(
    checkpoint: Checkpoint,
    recipe: Recipe,
    windows: Sequence[Tensor],
    *,
    calibrated: Callable[[str], CalibratedBlock | None] = lambda fqn: None,
    device: str = "cpu",
    on_step: Callable[[str], None] = lambda name: None,
) -> TextFigures:
    """Return the figures of a checkpoint quantized by a recipe, computed in torch.

    ``windows`` are token ids ``[T]``, all of one length. ``calibrated`` returns what was calibrated of a layer before.
    ``on_step`` is told what begins. Raises ``RecipeError`` for a recipe that does not fit the model.
    """
    recipe = fitted_recipe(checkpoint, recipe, windows)
    max_len = len(windows[0])
    both = [
        DecoderBlocks(checkpoint, max_len=max_len, device=device),
        DecoderBlocks(checkpoint, max_len=max_len, recipe=recipe, device=device, calibrated=calibrated),
    ]
    streams = _read(both, windows, on_step=on_step)
    with both[0].head() as float_head, both[1].head() as head:
        return _compared(
            _logits_of(streams[0], float_head), _logits_of(streams[1], head), windows, device=device, on_step=on_step
        )


def evaluate_program(
    program: Program,
    checkpoint: Checkpoint,
    windows: Sequence[Tensor],
    *,
    device: str = "cpu",
    on_step: Callable[[str], None] = lambda name: None,
) -> TextFigures:
    """Return the figures of a program, compared with its checkpoint. It reads one token at a time, as it answers.

    The ``device`` computes the float model. The other arguments are those of ``evaluate_recipe``. Raises
    ``PackageError`` if the program is not of this checkpoint.
    """
    check_sizes(checkpoint, program.card)
    _check_length(windows, limit=program.card.max_context_len, what="of the program's context")
    floats = FloatReading(checkpoint, windows, device=device, on_step=on_step)
    embedded: dict[int, Tensor] = {}

    def logits(window: int, start: int, end: int) -> Tensor:
        if start == 0:
            embedded.clear()
            embedded[window] = program.embed(windows[window].tolist())
        rows = embedded[window]
        return torch.stack([program.decode(rows[:, at : at + 1], position=at) for at in range(start, end)])

    return floats.compared_with_logits(logits, on_step=on_step)


def fitted_recipe(checkpoint: Checkpoint, recipe: Recipe, windows: Sequence[Tensor]) -> Recipe:
    """Return a recipe with all that ``Recipe.fitted`` chooses.

    Raises ``RecipeError`` if it does not fit the model, and ``CorpusError`` for windows that are too long for it.
    """
    shapes = checkpoint.build_model(max_context_len=1)
    recipe = recipe.fitted(shapes)
    recipe.check(shapes)
    _check_model_length(windows, checkpoint.config.text)
    return recipe


def _finite(value: Any) -> Any:
    """Return a number or figure, with None for numbers that JSON has not."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return value if value is None or math.isfinite(value) else None


def num_steps(checkpoint: Checkpoint, windows: Sequence[Tensor]) -> int:
    """Return how often ``on_step`` is called."""
    return 1 + checkpoint.config.text.num_hidden_layers + len(windows)


def t_quantile(degrees: int) -> float:
    """Return how many standard errors an interval of Student's t reaches to each side.

    The expansion is that of Abramowitz and Stegun (1964), 26.7.5; below 3 degrees of freedom the exact values are used.
    """
    probability = (1 + CONFIDENCE) / 2
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def _check_model_length(windows: Sequence[Tensor], text: TextConfig) -> None:
    """Raise ``CorpusError`` if windows of a text are longer than a model can read at once."""
    is_trained = text.max_context_len == text.max_position_embeddings
    what = "the model was trained for" if is_trained else "that its attention sees at once (sliding_window)"
    _check_length(windows, limit=text.max_context_len, what=what)


def _check_length(windows: Sequence[Tensor], *, limit: int, what: str) -> None:
    """Raise ``CorpusError`` if windows are longer than a number of positions."""
    if len(windows[0]) > limit:
        raise CorpusError(f"a window of {len(windows[0])} tokens is longer than the {limit} positions {what}")


def _read(
    models: Sequence[DecoderBlocks], windows: Sequence[Tensor], *, on_step: Callable[[str], None]
) -> list[Stream]:
    """Return the rows that each model's last layer returns. Each layer is read for all models at a time."""
    on_step("token embedding")
    streams = [Stream(blocks.embed(windows), decoder=blocks.decoder) for blocks in models]
    for number, fqn in enumerate(models[0].layers, start=1):
        on_step(f"layer {number} of {len(models[0].layers)}")
        for blocks, stream in zip(models, streams, strict=True):
            with blocks.loaded(fqn) as layer:
                stream.advance(layer)
    return streams


def _logits_of(stream: Stream, head: Head) -> WindowLogits:
    """Return a function that computes logits from the rows of the last layer."""
    return lambda window, start, end: head.logits(stream.rows[window][:, start:end])


def _compared(
    expected: WindowLogits,
    found: WindowLogits,
    windows: Sequence[Tensor],
    *,
    device: str,
    on_step: Callable[[str], None],
) -> TextFigures:
    """Return the figures of ``found`` by comparing it with ``expected``, some positions at a time."""
    means = []
    for window, ids in enumerate(windows):
        on_step(f"window {window + 1} of {len(windows)}")
        sums = torch.zeros(4, dtype=torch.float64)
        last = len(ids) - 1
        for start in range(0, last, POSITIONS_AT_ONCE):
            end = min(start + POSITIONS_AT_ONCE, last)
            following = ids[start + 1 : end + 1, None].to(device)
            float_log, found_log = (
                logits(window, start, end).to(device).log_softmax(-1) for logits in (expected, found)
            )
            kl = (float_log.exp() * (float_log - found_log)).sum(-1)
            same = float_log.argmax(-1) == found_log.argmax(-1)
            surprises = [-it.gather(-1, following)[:, 0] for it in (float_log, found_log)]
            sums += torch.stack([it.double().sum().cpu() for it in (*surprises, kl, same)])
        means.append((sums / last).tolist())
    float_nll, nll, kl_mean, top1 = map(Estimate.mean, zip(*means, strict=True))
    return TextFigures(
        windows=len(windows),
        window_len=len(windows[0]),
        float_perplexity=float_nll.map(_exp),
        perplexity=nll.map(_exp),
        kl=kl_mean.map(lambda value: max(value, 0.0)),  # rounding may make one of 0 negative; NaN stays
        top1=top1.map(lambda value: min(1.0, max(0.0, value))),
    )


def _exp(value: float) -> float:
    """Return e to the power of a value; infinity where that is no float."""
    return math.exp(value) if value < LARGEST_EXPONENT else math.inf
