"""What an export needs of a checkpoint's tokenizer, whatever its kind is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import TokenizerRules
from llava_runner.tokenizer_file import AnyTokenizer


@dataclass(frozen=True)
class CheckpointTokenizer(ABC):
    """A checkpoint's tokenizer.

    ``source`` is the name of the file that it was read from. ``bos_id`` and ``eos_id`` are -1 where there is no such
    token. ``notes`` are sentences for the user about what was left out.
    """

    source: str
    rules: TokenizerRules
    bos_id: int
    eos_id: int
    notes: tuple[str, ...]

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens: one more than the largest id."""

    @property
    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """The files that other programs read it from, by their names."""

    @property
    @abstractmethod
    def needs_bos(self) -> bool:
        """Whether such tokenizers have a token that begins texts, even where it is not added to all of them."""

    @abstractmethod
    def base(self) -> AnyTokenizer:
        """Return the tokenizer as a runner opens it, without the rules of its model."""

    @abstractmethod
    def text(self, token_id: int) -> str:
        """Return how a token is spelled; "" for an id that no token has."""

    @abstractmethod
    def begin(self, bos_id: int) -> str:
        """Return how the token is spelled that conversations begin with, ``bos_id`` in the model's config; or ""."""

    def chat_tokenizer(self, *, bos_id: int) -> ChatTokenizer:
        """Return the tokenizer as a runner has it."""
        return ChatTokenizer(self.base(), rules=self.rules, bos_id=bos_id)
