"""Samples as the rows that a text decoder reads: the embedded tokens of a conversation or text, with its image's.

Images are encoded by the float model. What is measured of the decoder so has inputs as they will be, up to the error
of a quantized vision tower, which is small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llava_export.calibration.samples import Sample, spread
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.prompt import Prompt
from llava_export.corpus import begin_id, check_vocabulary, encode_text
from llava_export.errors import CalibrationError, some
from llava_export.reference import FloatReference
from llava_export.stages import Stages
from llava_export.streams import DecoderBlocks
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.errors import ImageError, PromptError
from llava_runner.prompt import Chunk, Span, question_chunks

IMAGES_AT_ONCE = 32  # that go through the vision tower together, with about 4 MB of states each
BLOCKS_OUTSIDE_LAYERS = 3  # of the vision encoder: embeddings, first norm, projector


@dataclass(frozen=True)
class _Sequence:
    """Token ids ``int64 [T]``, and an image in front of the one at ``position``, or None."""

    ids: Tensor
    image: Path | None = None
    position: int = 0


def read_samples(
    samples: Sequence[Sample],
    checkpoint: Checkpoint,
    *,
    prompt: Prompt,
    max_len: int,
    limit: int | None,
    stages: Stages,
) -> list[Tensor]:
    """Return what ``calibration_rows`` does, as a stage that is timed and shown."""
    with stages.stage("read samples", steps=num_steps(checkpoint, samples, limit=limit)) as step:
        return calibration_rows(
            checkpoint,
            samples,
            prompt=prompt,
            max_len=max_len,
            embed=DecoderBlocks(checkpoint, max_len=1).embed,
            limit=limit,
            on_step=step,
            on_note=stages.note,
        )


def calibration_rows(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    prompt: Prompt,
    max_len: int,
    embed: Callable[[list[Tensor]], list[Tensor]],
    limit: int | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[Tensor]:
    """Return the rows ``float32 [1, T, hidden_size]`` of samples, with T of at most ``max_len``.

    A conversation is what the model reads and writes: the prompt, the image's features, question, answer and its end.
    One that is too long is cut, and a text is divided. Of more than ``limit`` sequences some are taken, evenly spread.

    ``embed`` returns the rows of token ids ``[T]`` each. ``on_step`` is called at most ``num_steps`` times, and
    ``on_note`` with a sentence about what is cut. Raises ``ImageError`` for images that cannot be read, ``PromptError``
    for what is no text, ``CorpusError`` for ids outside the vocabulary, and ``CalibrationError`` where an image does
    not fit.
    """
    tokenizer = checkpoint.tokenizer.chat_tokenizer(bos_id=checkpoint.config.bos_id)
    sequences: list[_Sequence] = []
    num_cut = 0
    chosen = spread(list(samples), limit)
    for sample in chosen:
        if sample.question:
            read = _conversation(sample, prompt, tokenizer)
            sequence = _cut(read, checkpoint, max_len=max_len, name=sample.name)
            num_cut += len(sequence.ids) < len(read.ids)
            sequences.append(sequence)
        else:
            sequences += _texts(sample, checkpoint, tokenizer, max_len=max_len)
    sequences = spread(sequences, limit)
    if not sequences:
        raise CalibrationError("the samples have no tokens: there is nothing to calibrate with")
    if num_cut:
        on_note(f"{num_cut} of {len(chosen)} samples are cut at {max_len} positions")
    features = _features(checkpoint, [it.image for it in sequences if it.image], on_step=on_step)
    rows = embed([sequence.ids for sequence in sequences])
    on_step()
    last_use = {sequence.image: i for i, sequence in enumerate(sequences)}
    for i, sequence in enumerate(sequences):
        if sequence.image is not None:
            found = features.pop(sequence.image) if last_use[sequence.image] == i else features[sequence.image]
            before, after = rows[i][:, : sequence.position], rows[i][:, sequence.position :]
            rows[i] = torch.cat([before, found.to(before.device), after], dim=1)
    return rows


def num_steps(checkpoint: Checkpoint, samples: Sequence[Sample], *, limit: int | None = None) -> int:
    """Return how often ``calibration_rows`` calls ``on_step`` at most."""
    images = {sample.image for sample in spread(list(samples), limit) if sample.image}
    blocks = checkpoint.config.num_vision_layers + BLOCKS_OUTSIDE_LAYERS
    return -(-len(images) // IMAGES_AT_ONCE) * blocks + 1


def _conversation(sample: Sample, prompt: Prompt, tokenizer: ChatTokenizer) -> _Sequence:
    """Return the tokens of a conversation of one turn."""
    has_image = sample.image is not None
    try:
        chunks = question_chunks(sample.question, template=prompt.template, num_images=int(has_image), first_turn=True)
        ids = tokenizer.encode_turn(answered(chunks, sample.answer, prompt) if sample.answer else chunks)
    except PromptError as error:
        raise PromptError(f"{sample.name}: {error}") from error
    return _Sequence(
        torch.tensor(list(chain.from_iterable(ids)), dtype=torch.int64), sample.image, position=len(ids[0])
    )


def answered(chunks: Sequence[Chunk], answer: str, prompt: Prompt) -> tuple[Chunk, ...]:
    """Return the chunks of a question, as ``question_chunks`` returns them, with an answer and its end behind."""
    said = (
        Span(prompt.chat.before_answer, is_template=True),
        Span(answer, is_template=False),
        Span(prompt.template.answer_end, is_template=True),
    )
    return (*chunks[:-1], (*chunks[-1], *said))


def _cut(sequence: _Sequence, checkpoint: Checkpoint, *, max_len: int, name: str) -> _Sequence:
    """Return what fits of a conversation. Raises ``CalibrationError`` if the image does not, with a token after it."""
    if sequence.image is None:
        return _Sequence(sequence.ids[:max_len])
    num_image_tokens = checkpoint.config.num_image_tokens
    with_image = sequence.position + num_image_tokens
    if with_image >= max_len:
        raise CalibrationError(
            f"{name}: the image, which takes {num_image_tokens} positions, and what comes before it do not fit into "
            f"{max_len} positions with anything after it; it takes {with_image + 1}"
        )
    return _Sequence(sequence.ids[: max_len - num_image_tokens], sequence.image, sequence.position)


def _texts(sample: Sample, checkpoint: Checkpoint, tokenizer: ChatTokenizer, *, max_len: int) -> list[_Sequence]:
    """Return the tokens of a text, in parts of equal length, or nothing if it has none."""
    bos_id = None
    if sample.ids is None:
        bos_id = begin_id(checkpoint)
        try:
            ids = encode_text(sample.answer, tokenizer, begins=bos_id is not None)
        except PromptError as error:
            raise PromptError(f"{sample.name}: {error}") from error
    else:
        ids = sample.ids
        check_vocabulary(ids, checkpoint, name=sample.name)
    begin = torch.tensor([] if bos_id is None else [bos_id], dtype=torch.int64)
    count = -(-len(ids) // max(1, max_len - len(begin)))
    return [_Sequence(torch.cat([begin, part])) for part in ids.tensor_split(count)] if count else []


def _features(checkpoint: Checkpoint, images: Sequence[Path], *, on_step: Callable[[], None]) -> dict[Path, Tensor]:
    """Return the features ``float32 [1, num_image_tokens, hidden_size]`` of images, by their paths."""
    paths = list(dict.fromkeys(images))
    pixels = _pixels(checkpoint, paths)  # all of them first: a mistake is found before anything is computed
    model = checkpoint.build_model(max_context_len=1)
    reference = FloatReference(model, weights=checkpoint.weights, on_block=on_step)
    features: list[Tensor] = []
    for start in range(0, len(paths), IMAGES_AT_ONCE):
        features += reference.encode_images(pixels[start : start + IMAGES_AT_ONCE])
    return dict(zip(paths, features, strict=True))


def _pixels(checkpoint: Checkpoint, paths: Sequence[Path]) -> list[np.ndarray]:
    """Return images as the model sees them, ``uint8 [3, H, W]``. Raises ``ImageError`` for all that cannot be read."""
    pixels, reasons = [], {}
    for path in paths:
        try:
            pixels.append(checkpoint.images.prepared(path))
        except ImageError as error:
            reasons[str(path)] = str(error)
    if reasons:
        raise ImageError(f"{some(list(reasons), 'image')} unreadable: {next(iter(reasons.values()))}")
    return pixels
