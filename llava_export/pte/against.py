"""Compares a package with its checkpoint: both are asked about several pictures, follow-up questions included.

Where transformers is installed and can open the checkpoint, it reads the prompts, prepares the pictures and answers for
the checkpoint. Then nothing is compared with itself: no step of an export is repeated. Otherwise the float model of
this project answers. The program reads the original's tokens, not its own, so that one other token does not hide the
rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.processor import Original, Processor
from llava_export.checkpoint.prompt import GIVEN, Prompt, find_prompt, stop_ids
from llava_export.families.prompts import ChatPrompt
from llava_export.pte.verify import Comparison, compare_features, compare_logits
from llava_export.reference import FloatReference
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import ModelCard
from llava_runner.errors import PackageError, PromptError
from llava_runner.image import load_image, prepare_image_for
from llava_runner.model import greedy
from llava_runner.program import Program
from llava_runner.prompt import chunk_text, question_chunks
from llava_runner.tokenizer_file import AnyTokenizer

QUESTIONS = ("What is in the image?", "Which colors do you see?", "How many things are there?")
FOLLOW_UP = "Are you sure?"
MAX_TOKENS = 6  # of each answer


@dataclass(frozen=True)
class Said:
    """What a model said: ``ids`` of the conversation around its image, and the answer's ``tokens`` with ``logits``.

    ``features`` are ``float32 [1, num_image_tokens, hidden_size]``, and ``logits`` ``[V]`` for each token.
    """

    ids: list[list[int]]
    features: Tensor
    tokens: list[int]
    logits: list[Tensor]


class Asked(Protocol):
    """The original of a package, or what stands for it."""

    name: str

    def ask(self, texts: Sequence[str], ids: list[list[int]], picture: Image.Image, pixels: np.ndarray) -> Said:
        """Return the answer to a conversation so far, given as texts and as our ids before and after its picture."""
        ...


@dataclass
class Conversation:
    """A conversation about a picture. ``turns`` has the comparisons of each answer; ``failures`` what else differs."""

    name: str
    features: Comparison | None = None
    turns: list[list[Comparison]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class FloatModel:
    """The float model of this project. It reads the ids and pixels of the export."""

    name = "the float model of this project"

    def __init__(self, checkpoint: Checkpoint, *, max_context_len: int, eos_ids: Sequence[int]) -> None:
        model = checkpoint.build_model(max_context_len=max_context_len)
        self._reference = FloatReference(model, weights=checkpoint.weights)
        self._eos_ids = eos_ids

    def ask(self, texts: Sequence[str], ids: list[list[int]], picture: Image.Image, pixels: np.ndarray) -> Said:
        """Return the answer to a conversation. Only ``ids`` and ``pixels`` are read."""
        features = self._reference.encode_image(pixels)
        before, after = map(self._reference.embed, ids)
        rows = torch.cat([before, features, after], dim=1)
        answer = list(greedy(self._reference, rows, max_tokens=MAX_TOKENS, eos_ids=self._eos_ids))
        return Said(ids, features, [token for token, _ in answer], [logits for _, logits in answer])


class TransformersModel:
    """The model of transformers, with its processor. It reads the texts and the picture."""

    def __init__(self, original: Original, *, eos_ids: Sequence[int]) -> None:
        self.name = original.name
        self._original = original
        self._eos_ids = eos_ids

    def ask(self, texts: Sequence[str], ids: list[list[int]], picture: Image.Image, pixels: np.ndarray) -> Said:
        """Return the answer to a conversation. Only ``texts`` and ``picture`` are read."""
        found = self._original.answer(texts, picture, max_tokens=MAX_TOKENS, eos_ids=self._eos_ids)
        return Said(*found)


def check_sizes(checkpoint: Checkpoint, card: ModelCard) -> None:
    """Raise ``PackageError`` if a package cannot be of this checkpoint, by the sizes of what both return."""
    config = checkpoint.config
    sizes = (config.num_image_tokens, config.text.hidden_size, config.text.vocab_size)
    if sizes != (card.num_image_tokens, card.hidden_size, card.vocab_size):
        raise PackageError(
            f"the package is not of {checkpoint.name}, which has {sizes[0]} image tokens of width {sizes[1]} and "
            f"{sizes[2]} tokens; the package has {card.num_image_tokens} of width {card.hidden_size} and "
            f"{card.vocab_size}"
        )


def described_otherwise(card: ModelCard, checkpoint: Checkpoint) -> list[str]:
    """Return in words what a package says otherwise than its checkpoint: prompt, added tokens, spaces, and ends.

    A prompt that was asked for may be another one. A date in it is that of the export.
    """
    found = []
    given = Prompt(ChatPrompt(card.prompt), card.prompt_source)
    if not card.prompt_source.startswith(GIVEN):
        prompt = find_prompt(checkpoint)
        pairs = [(name, value, getattr(prompt.template, name)) for name, value in asdict(card.prompt).items()]
        differences = [f"{name} is {own!r}, not {other!r}" for name, own, other in pairs if own != other]
        if differences and not prompt.chat.is_dated:
            found.append(f"the package's prompt is not that from {prompt.source}: its {', '.join(differences)}")
    if card.tokenizer != checkpoint.tokenizer.rules:
        found.append("the package's added tokens or rules about spaces are not the checkpoint's")
    ends = stop_ids(given, checkpoint)
    if set(card.eos_ids) != set(ends):
        found.append(f"the package ends an answer with {sorted(card.eos_ids)}, the checkpoint with {sorted(ends)}")
    return found


def original_of(
    checkpoint: Checkpoint, processor: Processor | None, *, max_context_len: int, eos_ids: Sequence[int]
) -> Asked:
    """Return transformers' model of a checkpoint, or this project's float model where that cannot be had."""
    original = Original.open(checkpoint, processor)
    if original is None:
        return FloatModel(checkpoint, max_context_len=max_context_len, eos_ids=eos_ids)
    return TransformersModel(original, eos_ids=eos_ids)


def conversations(
    program: Program,
    tokenizer: AnyTokenizer,
    *,
    original: Asked,
    processor: Processor | None,
    pictures: Sequence[tuple[str, Image.Image]],
) -> Iterator[Conversation]:
    """Yield a conversation about each picture, which has a name. ``processor`` is the checkpoint's by transformers.

    Raises ``PromptError`` for too short a context.
    """
    card = program.card
    reader = ChatTokenizer.of(card, tokenizer)
    for i, (name, picture) in enumerate(pictures):
        pixels = prepare_image_for(card, picture)
        features = program.encode_image(pixels)
        found = Conversation(name)
        texts = ["", ""]
        ids: list[list[int]] = [[], []]
        last_id: int | None = None
        for question in (QUESTIONS[i % len(QUESTIONS)], FOLLOW_UP):
            is_first = last_id is None
            chunks = question_chunks(question, template=card.prompt, num_images=int(is_first), first_turn=is_first)
            turn = reader.encode_turn(chunks, before=last_id)
            for at in range(-len(turn), 0):
                texts[at] += chunk_text(chunks[at])
                ids[at] = ids[at] + turn[at]
            if sum(map(len, ids)) + card.num_image_tokens + MAX_TOKENS > card.max_context_len:
                raise PromptError(f"a context of {card.max_context_len} positions is too short for two questions")
            said = original.ask(texts, ids, picture, pixels)
            if is_first:
                found.features = compare_features(features, said.features)
            theirs = processor.prompt_ids(texts, adds_bos=card.tokenizer.adds_bos) if processor else said.ids
            if any(theirs[at][-len(turn[at]) :] != turn[at] for at in range(-len(turn), 0)):
                found.failures.append(f"{name}: transformers reads {question!r} as {theirs}, the package as {ids}")
            found.turns.append(list(_compared(program, features, said)))
            answer = [token for token in said.tokens if token not in card.eos_ids]
            ids[-1] = ids[-1] + answer
            texts[-1] += b"".join(map(reader.decode_piece, answer)).decode(errors="replace")
            last_id = ids[-1][-1]
        yield found


def pictures(image: Path | None) -> list[tuple[str, Image.Image]]:
    """Return pictures of several shapes with their names: of the sample image, and of a file of the user's."""
    sample = load_image(SAMPLE_IMAGE)
    assert isinstance(sample, Image.Image)
    width, height = sample.size
    found = [
        ("the sample", sample),
        ("its left half", sample.crop((0, 0, width // 2, height))),
        ("its upper third", sample.crop((0, 0, width, height // 3))),
    ]
    if image is not None:
        own = load_image(image)
        if isinstance(own, Image.Image):  # a tensor is prepared already
            found.append((image.name, own))
    return found


def _compared(program: Program, features: Tensor, said: Said) -> Iterator[Comparison]:
    """Yield the comparison of each token's logits. The program reads the original's conversation and answer."""
    before, after = (program.embed(chunk) for chunk in said.ids)
    tokens = iter(said.tokens)
    answer = greedy(
        program, torch.cat([before, features, after], dim=1), max_tokens=len(said.tokens), choose=lambda _: next(tokens)
    )
    for i, ((_, found), expected) in enumerate(zip(answer, said.logits, strict=True)):
        yield compare_logits(found, expected, stage=f"token {i + 1}")
