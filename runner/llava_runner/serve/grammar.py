"""Answers in JSON: before each token, what cannot go on with JSON of a schema is ruled out.

The library llguidance turns the schema into a grammar, and says for each place of an answer which tokens may come.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.errors import PromptError
from llava_runner.serve.grammar_check import check_grammar, limits, one_line

SCHEMA_AT_MOST = 64 << 10  # bytes of its JSON
ANY_OBJECT: dict[str, Any] = {"type": "object"}
# One space may stand where people write one, and nothing else: models are used to it, and no answer rambles in spaces.
LAYOUT = {"whitespace_flexible": False, "item_separator": r",\x20?", "key_separator": r":\x20?"}
# The model chooses the tokens of a text that the schema leaves no choice about, too.
LARK = '%llguidance {{"no_forcing": true}}\nstart: {start}'
BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
# Row b has the largest logits of the eight tokens whose bits make the byte b. Masks of numpy take ten times as long.
MOST_BY_BITS = np.where(BITS, np.float32(np.inf), np.float32(-np.inf))


def json_processor(
    tokenizer: ChatTokenizer, *, eos_ids: Sequence[int], vocab_size: int, schema: dict[str, Any] | None
) -> JsonMask:
    """Return what rules out the tokens that are no JSON of a schema, or of any object if ``schema`` is None.

    It is for one answer. The tokens ``eos_ids``, which end an answer, are ruled out until the JSON is whole. An answer
    that ends before that, as its tokens are used up, is no JSON. The JSON is on one line, with no space before or
    behind it. Properties come in the order of the schema.

    The first call for a tokenizer makes a table of its tokens, which later calls use again. The first call for a schema
    tries it in a process of its own. Both may be done in any thread.

    Raises ``PromptError`` for a schema that is none, has keywords that cannot be enforced, allows no JSON, or takes too
    long.
    """
    grammar = json_grammar(ANY_OBJECT if schema is None else schema, may_begin_with_space=not tokenizer.is_byte_level)
    check_grammar(grammar)
    return JsonMask(token_table(tokenizer, eos_ids=tuple(eos_ids), vocab_size=vocab_size), grammar)


class JsonMask:
    """The logits processor of one answer. It keeps the place in the grammar that the answer has reached."""

    def __init__(self, table: LLTokenizer, grammar: str) -> None:
        """Begin an answer. Raises ``PromptError`` if the grammar cannot be used with these tokens."""
        self._matcher = LLMatcher(table, grammar, log_level=0, limits=limits())
        self._read = 0  # tokens of the answer
        self._allowed_bits()

    def __call__(self, ids: Sequence[int], logits: np.ndarray) -> None:
        """Set the logits ``float32 [vocab_size]`` of all that cannot come after ``ids`` to minus infinity, in place.

        ``ids`` is the answer so far, of which earlier calls have read the beginning. Raises ``PromptError`` where a
        schema becomes too complex, or the tokens lack characters that it asks for.
        """
        self._matcher.consume_tokens(list(ids[self._read :]))
        self._read = len(ids)
        most = MOST_BY_BITS.take(self._allowed_bits(), axis=0).reshape(-1)[: len(logits)]
        np.minimum(logits, most, out=logits)
        if logits.max() == -np.inf:  # the model has ruled out by itself what may come
            logits[most == np.inf] = 0

    def _allowed_bits(self) -> np.ndarray:
        """Return which tokens may come next, a bit each. Raises ``PromptError`` if llguidance cannot tell."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if error := self._matcher.get_error():
            raise PromptError(f"the JSON schema cannot be followed after {self._read} tokens: {one_line(error)}")
        return bits


def json_grammar(schema: dict[str, Any], *, may_begin_with_space: bool) -> str:
    """Return a schema's grammar, as llguidance reads it. Raises ``PromptError`` for what is not JSON, or too large.

    SentencePiece's first token has a space of its own, which ``TextStream`` drops.
    """
    if not isinstance(schema, dict):
        raise PromptError("the JSON schema must be an object")
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"the JSON schema is not JSON, or too deep: {error}") from None
    if len(text) > SCHEMA_AT_MOST:
        raise PromptError(f"the JSON schema has {len(text)} bytes; at most {SCHEMA_AT_MOST} are read")
    start = "/ ?/ @json" if may_begin_with_space else "@json"
    grammars: list[dict[str, Any]] = [
        {"lark_grammar": LARK.format(start=start)},
        {"name": "json", "json_schema": {**schema, "x-guidance": LAYOUT}},
    ]
    return json.dumps({"grammars": grammars})


@lru_cache(maxsize=1)
def token_table(tokenizer: ChatTokenizer, *, eos_ids: tuple[int, ...], vocab_size: int) -> LLTokenizer:
    """Return llguidance's table of the tokens."""
    tokens = token_bytes(tokenizer, vocab_size=vocab_size)
    wrapper = TokenizerWrapper(_Vocabulary(tokens, eos_ids=eos_ids))
    return LLTokenizer(wrapper, eos_token=list(eos_ids), slices=LLTokenizer.json_slices())


def token_bytes(tokenizer: ChatTokenizer, *, vocab_size: int) -> list[bytes]:
    """Return the bytes of each token that an answer in JSON may have; none for all others.

    These are special tokens, that for unknown text, ids beyond the vocabulary, which logits may have, and byte pieces
    where another piece has the same byte: SentencePiece does not use them.
    """
    pieces = [tokenizer.decode_piece(i) for i in range(vocab_size)]
    is_byte = [not tokenizer.is_byte_level and tokenizer.is_byte(i) for i in range(vocab_size)]
    texts = {piece for piece, byte in zip(pieces, is_byte, strict=True) if not byte}
    return [
        b"" if tokenizer.is_unknown(i) or (byte and piece in texts) else piece
        for i, (piece, byte) in enumerate(zip(pieces, is_byte, strict=True))
    ]


class _Vocabulary:
    """What ``TokenizerWrapper`` asks for."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], *, eos_ids: Sequence[int]) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_ids[0]
        self.special_token_ids = eos_ids

    def __call__(self, text: bytes | str) -> list[int]:
        """Raise an error: a grammar with ``no_forcing`` never needs the tokens of a text."""
        raise NotImplementedError
