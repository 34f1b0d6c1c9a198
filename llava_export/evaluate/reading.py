"""Items as a model reads them: the tokens of the prompt around the image, and the prepared image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava_export.evaluate.items import Item
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import ModelCard
from llava_runner.errors import PromptError
from llava_runner.image import prepare_image_for
from llava_runner.prompt import question_chunks
from llava_runner.tokenizer import TextStream
from llava_runner.tokenizer_file import AnyTokenizer


@dataclass(frozen=True)
class Prompt:
    """A prompt: ``ids`` before and after its image, or all where ``pixels``, uint8 ``[3, H, W]``, is None."""

    ids: list[list[int]]
    pixels: np.ndarray | None

    def equals(self, other: Prompt) -> bool:
        """Return whether a model reads the same."""
        if self.pixels is None or other.pixels is None:
            return self.ids == other.ids and self.pixels is other.pixels
        return self.ids == other.ids and np.array_equal(self.pixels, other.pixels)


class Reader:
    """What a package says of how its model reads questions and images, and writes answers."""

    def __init__(self, card: ModelCard, tokenizer: AnyTokenizer) -> None:
        self.card = card
        self._tokenizer = ChatTokenizer.of(card, tokenizer)

    def ids(self, item: Item) -> list[list[int]]:
        """Return the tokens of an item's prompt, before and after its image. Raises ``PromptError``."""
        has_image = bool(item.image)
        chunks = question_chunks(item.question, template=self.card.prompt, num_images=int(has_image), first_turn=True)
        try:
            return self._tokenizer.encode_turn(chunks)
        except PromptError as error:
            raise PromptError(f"item {item.id}: {error}") from error

    def positions(self, item: Item) -> int:
        """Return the positions that an item's prompt takes. Raises ``PromptError``."""
        return sum(map(len, self.ids(item))) + (self.card.num_image_tokens if item.image else 0)

    def prompt(self, item: Item, *, folder: Path) -> Prompt:
        """Return an item's prompt. Raises ``PromptError`` and ``ImageError``."""
        return Prompt(self.ids(item), prepare_image_for(self.card, folder / item.image) if item.image else None)

    def text(self, ids: Iterable[int]) -> str:
        """Return the text of an answer's tokens, without spaces around it."""
        stream = TextStream(self._tokenizer)
        pieces = [stream.push(token) for token in ids if token not in self.card.eos_ids]
        return ("".join(pieces) + stream.flush()).strip()
