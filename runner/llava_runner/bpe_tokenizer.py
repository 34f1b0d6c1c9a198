"""Text to token ids and back by a byte-level BPE, from ``tokenizer.json``. The library ``tokenizers`` does the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from llava_runner.bpe_model import BpeModel, Digits, read_bpe, token_bytes
from llava_runner.contract import AddedToken
from llava_runner.documents import JsonObject, parse_object
from llava_runner.errors import PackageError
from llava_runner.tokenizer import TOKENIZER_AT_MOST, check_text


class BpeTokenizer:
    """A byte-level BPE, with the calls of ``Tokenizer``.

    It never makes an added token of a text, not even where the vocabulary has it and merges lead to it: finding those
    is up to ``ChatTokenizer``.
    """

    is_byte_level = True

    def __init__(self, model: BpeModel, *, added: Mapping[int, str] | None = None) -> None:
        """``added`` has the added tokens that a model's card lists, in place of those that the file lists."""
        self.model = model
        self._added = {**model.added, **(added or {})}
        self.vocab_size: int = 1 + max(*model.vocab.values(), *(model.added if added is None else added))
        self._normalizer = normalizers.NFC() if model.is_nfc else None

    @classmethod
    def from_json(cls, content: bytes | str, *, what: str = "tokenizer.json") -> BpeTokenizer:
        """Return the tokenizer of a ``tokenizer.json``, which errors call ``what``. Raises ``PackageError``."""
        document = parse_object(content, what=what, error=PackageError, max_bytes=TOKENIZER_AT_MOST)
        return cls.from_document(document)

    @classmethod
    def from_document(cls, document: JsonObject) -> BpeTokenizer:
        """Return the tokenizer of a parsed ``tokenizer.json``. Raises the document's error."""
        model = read_bpe(document)
        try:
            _pre_tokenizer(model)
        except Exception as error:  # the library raises nothing more specific
            raise document.refusal(
                f"{document.where('pre_tokenizer')} has a pattern that cannot be used: {error}"
            ) from error
        return cls(model)

    def with_added(self, tokens: Iterable[AddedToken]) -> BpeTokenizer:
        """Return a tokenizer that has these added tokens, too. Its ``vocab_size`` counts no others."""
        texts = {it.id: self.normalize(it.content) if it.normalized else it.content for it in tokens}
        return BpeTokenizer(self.model, added=texts)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS. Raises ``PromptError`` as ``check`` does."""
        self.check(text)
        return self.encode_pieces(text)

    def encode_pieces(self, text: str) -> list[int]:
        """Return the token ids of a text that ``check`` passed. Raises ``PackageError`` for a pattern of no use."""
        try:
            return self._encoder.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            # The library has no other class for what its regular expressions give up on.
            if type(error).__name__ != "PanicException":
                raise
            raise PackageError(f"the tokenizer's pattern takes too long on this text: {error}") from None

    def normalize(self, text: str) -> str:
        """Return a text as it is before added tokens that are normalized are looked for."""
        return self._normalizer.normalize_str(text) if self._normalizer else text

    def check(self, text: str) -> None:
        """Raise ``PromptError`` as ``check_text`` does."""
        check_text(text)

    def decode_piece(self, token_id: int) -> bytes:
        """Return the bytes of a token, which may be parts of characters; none for ids beyond the vocabulary."""
        return token_bytes(self._added.get(token_id) or self.model.texts.get(token_id, ""))

    def is_added(self, token_id: int) -> bool:
        """Return True for an added token."""
        return token_id in self._added

    def is_byte(self, token_id: int) -> bool:
        """Return True: the bytes of all tokens together make characters."""
        return True

    def is_unknown(self, token_id: int) -> bool:
        """Return False: a byte that is no token is left out."""
        return False

    @cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        """The library's tokenizer, which knows no added tokens: merges that lead to them are left out."""
        ids = self.model.vocab
        # A single byte stays, since no other token could stand for it.
        hidden = {text for text, token_id in ids.items() if token_id in self._added and len(text) > 1}
        vocab = {text: token_id for text, token_id in ids.items() if text not in hidden} if hidden else dict(ids)
        merges = [
            (first, second)
            for first, second in self.model.merges
            if not hidden or not ({first, second, first + second} & hidden)
        ]
        encoder = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=self.model.ignore_merges))
        if self._normalizer:
            encoder.normalizer = self._normalizer
        encoder.pre_tokenizer = _pre_tokenizer(self.model)
        encoder.decoder = decoders.ByteLevel()
        return encoder


def _pre_tokenizer(model: BpeModel) -> pre_tokenizers.PreTokenizer:
    """Return the steps of the library that split a text. Raises its error for what is no regular expression."""
    steps: list[pre_tokenizers.PreTokenizer] = []
    for step in model.steps:
        if isinstance(step, Digits):
            steps.append(pre_tokenizers.Digits(individual_digits=step.individual))
        else:
            steps.append(pre_tokenizers.Split(tokenizers.Regex(step.pattern), behavior="isolated", invert=False))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=model.splits_as_gpt2))
    return pre_tokenizers.Sequence(steps)
