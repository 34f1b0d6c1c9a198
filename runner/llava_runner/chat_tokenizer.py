"""The tokenizer of a chat model: added tokens, and the spaces between them, as in transformers.

The files of a tokenizer list the pieces that byte pair encoding makes. A model's card has the rest. The algorithm is
that of the library ``tokenizers``: added tokens are found first, and each segment between them is encoded on its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from llava_runner.contract import AddedToken, ModelCard, TokenizerRules
from llava_runner.errors import PackageError
from llava_runner.prompt import TRIMMED, Chunk, Span, chunk_text
from llava_runner.tokenizer import SPACE
from llava_runner.tokenizer_file import AnyTokenizer

# The spaces that a token with lstrip or rstrip takes: those of Unicode. Python's strip() knows four more.
SPACES_BESIDE = "".join(sorted(set(TRIMMED) - set("\x1c\x1d\x1e\x1f")))
# A text, and for each of its characters whether it is of a template (1) or of a user (0).
Marked = tuple[str, bytes]


class ChatTokenizer:
    """A tokenizer with a model's own rules. It has the calls that ``TextStream`` needs, too."""

    def __init__(self, tokenizer: AnyTokenizer, *, rules: TokenizerRules, bos_id: int) -> None:
        self._pieces = tokenizer.with_added(rules.added_tokens)
        self.is_byte_level = tokenizer.is_byte_level
        self.vocab_size = self._pieces.vocab_size
        self._rules = rules
        self._bos_id = bos_id
        self._added = {token.id: token for token in rules.added_tokens}
        # A scheme of the kind "prepend" is a normalization: normalized tokens have its space, too.
        space = " " if rules.prepend_scheme == "prepend" else ""
        self._exact = _Finder({token.content: token for token in rules.added_tokens if not token.normalized})
        self._normalized = _Finder(
            {space + self._pieces.normalize(token.content): token for token in rules.added_tokens if token.normalized}
        )

    @classmethod
    def of(cls, card: ModelCard, tokenizer: AnyTokenizer) -> ChatTokenizer:
        """Return the tokenizer of a card's model. Raises ``PackageError`` if ``tokenizer`` is that of another model."""
        found = cls(tokenizer, rules=card.tokenizer, bos_id=card.bos_id)
        if found.vocab_size != card.tokenizer_vocab_size:
            raise PackageError(
                f"the tokenizer has {found.vocab_size} tokens and the model was trained with "
                f"{card.tokenizer_vocab_size}; use the tokenizer that was exported with it"
            )
        return found

    def encode_turn(self, chunks: Sequence[Chunk], *, before: int | None = None) -> list[list[int]]:
        """Return the token ids of each chunk of a turn. Between two chunks stands an image.

        ``before`` is the token that the turn comes after; None if it is the first. Raises ``PromptError`` for text that
        is not Unicode, or too long.
        """
        at_start = before is None
        ids = [self._encode(chunks[0], begins_text=at_start, begins_segment=at_start or before in self._added)]
        if at_start and self._rules.adds_bos and ids[0][:1] != [self._bos_id]:
            ids[0].insert(0, self._bos_id)
        return ids + [self._encode(chunk, begins_text=self._rules.image_begins_text) for chunk in chunks[1:]]

    def encode_answer(self, text: str) -> list[int]:
        """Return the token ids of an answer that the model did not write itself. Raises ``PromptError``, as above.

        They are those that a model is trained to write after its template's cue.
        """
        chunk = (Span(text, is_template=False),) if text else ()
        return self._encode(chunk, begins_text=True)

    def decode_piece(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token; nothing for special tokens, and for ids that stand for no text."""
        token = self._added.get(token_id)
        if token is None:
            return b"" if self._pieces.is_added(token_id) else self._pieces.decode_piece(token_id)
        if self.is_unknown(token_id) or (self.is_byte_level and not token.special):
            return self._pieces.decode_piece(token_id)
        return b"" if token.special else token.content.encode()

    def is_byte(self, token_id: int) -> bool:
        """Return True if the token is a byte piece."""
        return self._pieces.is_byte(token_id)

    def is_unknown(self, token_id: int) -> bool:
        """Return True if the token is the one for unknown text."""
        return self._pieces.is_unknown(token_id)

    def _encode(self, chunk: Chunk, *, begins_text: bool, begins_segment: bool = True) -> list[int]:
        """Return the ids of a chunk. What it begins decides about a space before its first word."""
        text = chunk_text(chunk)
        self._pieces.check(text)
        marks = b"".join(bytes([span.is_template]) * len(span.text) for span in chunk)
        scheme = self._rules.prepend_scheme
        ids: list[int] = []
        for segment in self._exact.split((text, marks)):
            if isinstance(segment, AddedToken):
                ids.append(segment.id)
                begins_text, begins_segment = False, True
                continue
            if scheme == "prepend" and begins_segment:
                segment = " " + segment[0], b"\1" + segment[1]
            segment = self._normalize(segment)
            for part in self._normalized.split(segment):
                if isinstance(part, AddedToken):
                    ids.append(part.id)
                    begins_text, begins_segment = False, True
                    continue
                words = part[0]
                gets_space = (scheme == "always" and begins_segment) or (scheme == "first" and begins_text)
                if gets_space and not words.startswith((" ", SPACE)):
                    words = " " + words
                ids += self._pieces.encode_pieces(words)
        return ids

    def _normalize(self, marked: Marked) -> Marked:
        """Return a text as its normalization is. Characters that a user's text has a part in are of the user."""
        text, marks = marked
        normal = self._pieces.normalize(text)
        if normal == text:
            return marked
        found = bytearray(len(normal))
        for run in re.finditer(rb"\x01+", marks):
            begin = len(normal) - _common(self._pieces.normalize(text[run.start() :])[::-1], normal[::-1])
            end = _common(self._pieces.normalize(text[: run.end()]), normal)
            found[begin:end] = b"\1" * max(0, end - begin)
        return normal, bytes(found)


def _common(one: str, other: str) -> int:
    """Return how many characters are the same at the beginning of two texts."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class _Finder:
    """Finds tokens in text: the leftmost first, and of several there the longest."""

    def __init__(self, tokens: dict[str, AddedToken]) -> None:
        self._tokens = dict(sorted(tokens.items(), key=lambda item: -len(item[0])))
        self._any = re.compile("|".join(map(re.escape, self._tokens)) if tokens else r"(?!)")

    def split(self, marked: Marked) -> Iterator[AddedToken | Marked]:
        """Yield the tokens of a text, and the text between them, in order. Special ones are found in templates only."""
        text, marks = marked
        done = at = 0
        while match := self._any.search(text, at):
            at = match.start()
            found = next((content for content in self._tokens if self._is_at(content, at, text, marks)), None)
            if found is None:
                at += 1
                continue
            token, end = self._tokens[found], at + len(found)
            start = done + len(text[done:at].rstrip(SPACES_BESIDE)) if token.lstrip else at
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip(SPACES_BESIDE))
            if start > done:
                yield text[done:start], marks[done:start]
            yield token
            done = at = end
        if done < len(text):
            yield text[done:], marks[done:]

    def _is_at(self, content: str, at: int, text: str, marks: bytes) -> bool:
        """Return True if a token is at a place in a text."""
        is_template = 0 not in marks[at : at + len(content)]
        return text.startswith(content, at) and (is_template or not self._tokens[content].special)
