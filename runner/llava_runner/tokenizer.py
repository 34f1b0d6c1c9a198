"""Text to token ids and back by SentencePiece, from ``tokenizer.model`` or ``tokenizer.bin`` (llama2c's layout)."""

from __future__ import annotations

import codecs
import math
import re
import struct
from collections.abc import Iterable, Set
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from llava_runner.contract import MAX_VOCAB, AddedToken
from llava_runner.errors import PromptError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes a space in a piece this way
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
UNKNOWN_PIECE = "<unk>"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# A tokenizer.bin has the vocabulary size, the BOS id, the EOS id and the length of the longest piece in bytes. Then it
# has the score, the length and the bytes of each piece.
BIN_HEADER = struct.Struct("<IIII")
BIN_PIECE = struct.Struct("<fI")

# The C++ runner has the same limits (runner/cpp/text/tokenizer.cpp).
TOKENIZER_AT_MOST = 32 << 20  # bytes of a file; Llama's have 0.5 MB
PIECE_AT_MOST = 1 << 10  # bytes
TEXT_AT_MOST = 1 << 20  # bytes to encode at once, far more than any context holds

schema: Any = sentencepiece_model_pb2  # its classes are made at import, where type checkers do not see them
Piece = schema.ModelProto.SentencePiece


class Tokenizer:
    """A SentencePiece tokenizer (BPE), with the calls that a session needs."""

    is_byte_level = False

    def __init__(self, processor: SentencePieceProcessor, exact: SentencePieceProcessor, *, added: Set[int]) -> None:
        """``exact`` is the processor without user-defined pieces and without a space before the text."""
        self._processor = processor
        self._exact = exact
        self._added = added
        self.vocab_size: int = processor.vocab_size()
        self.bos_id: int = processor.bos_id()
        self.eos_id: int = processor.eos_id()

    @classmethod
    def from_model(cls, content: bytes) -> Tokenizer:
        """Return the tokenizer of a SentencePiece model, serialized. Raises ``ValueError`` if it is none."""
        model = read_model(content)
        added = {i for i, piece in enumerate(model.pieces) if piece.type in (Piece.USER_DEFINED, Piece.UNUSED)}
        processor = _processor(content)
        for i in added:
            model.pieces[i].type = Piece.CONTROL
        model.normalizer_spec.add_dummy_prefix = False
        return cls(processor, _processor(model.SerializeToString()), added=added)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS. A space is put before the first word, as in training.

        Raises ``PromptError`` as ``check`` does.
        """
        self.check(text)
        return self._processor.encode(text)

    def encode_pieces(self, text: str) -> list[int]:
        """Return the token ids of a text that ``check`` passed, as it is: without a space before it or added tokens."""
        return self._exact.encode(text)

    def with_added(self, tokens: Iterable[AddedToken]) -> Tokenizer:
        """Return the tokenizer: its own pieces are all that it has."""
        return self

    def normalize(self, text: str) -> str:
        """Return the text as it is."""
        return text

    def check(self, text: str) -> None:
        """Raise ``PromptError`` as ``check_text`` does."""
        check_text(text)

    def is_added(self, token_id: int) -> bool:
        """Return True for a user-defined or unused piece: byte pair encoding does not make it."""
        return token_id in self._added

    def decode_piece(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token. A byte piece is one byte, which may be part of a character.

        Control tokens have no bytes, and neither have ids beyond the vocabulary, which a padded vocabulary has.
        """
        if token_id >= self.vocab_size or self._processor.is_control(token_id):
            return b""
        if self.is_unknown(token_id):
            return self._processor.decode([token_id]).encode()
        piece = self._processor.id_to_piece(token_id)
        if self.is_byte(token_id):
            return bytes.fromhex(piece[3:5])
        return piece.replace(SPACE, " ").encode()

    def is_byte(self, token_id: int) -> bool:
        """Return True if the token is a byte piece."""
        return token_id < self.vocab_size and self._processor.is_byte(token_id)

    def is_unknown(self, token_id: int) -> bool:
        """Return True if the token is the one for unknown text."""
        return token_id < self.vocab_size and self._processor.is_unknown(token_id)


def check_text(text: str) -> None:
    """Raise ``PromptError`` for text that is not Unicode, such as a command line in another encoding, and for more
    than 1 MiB of it.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise PromptError(f"the prompt is not valid Unicode at character {error.start}") from error
    if size > TEXT_AT_MOST:
        raise PromptError(f"the prompt has {size} bytes; at most {TEXT_AT_MOST} are read")


def _processor(content: bytes) -> SentencePieceProcessor:
    """Return SentencePiece's own reader of a model. Raises ``ValueError`` if it does not take it."""
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return processor


class Decoder(Protocol):
    """What a ``TextStream`` needs of a tokenizer. With ``is_byte_level``, the bytes of tokens are all that counts."""

    @property
    def is_byte_level(self) -> bool:
        """Return whether it is a byte-level BPE."""

    def decode_piece(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token."""

    def is_byte(self, token_id: int) -> bool:
        """Return True if the token is a byte piece."""

    def is_unknown(self, token_id: int) -> bool:
        """Return True if the token is the one for unknown text."""


class TextStream:
    """A decoder that turns tokens into text as they come, in whole characters.

    All that it returns, joined, equals SentencePiece's ``decode(ids)``. Like SentencePiece it drops one space at the
    beginning of the text, and shows each byte that is part of no character as U+FFFD. Of a byte-level BPE it equals the
    ``decode(ids)`` of the library ``tokenizers``: no space is dropped, and several bytes that begin a character are
    shown as one U+FFFD. ``dropped`` is the space, where the newest token had it, and otherwise empty.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if tokenizer.is_byte_level else None
        self._bytes = b""  # the first bytes of a character that is not complete yet
        self._at_start = True
        self.dropped = ""

    def push(self, token_id: int) -> str:
        """Return the characters that a token completes, which are often none."""
        self.dropped = ""
        piece = self._tokenizer.decode_piece(token_id)
        if self._decoder:
            return self._decoder.decode(piece)
        if self._tokenizer.is_byte(token_id):
            self._at_start = False
            self._bytes += piece
            return self._take_characters(final=False)
        text = self.flush()
        if self._at_start and piece:
            self._at_start = False
            # The text of the unknown token begins with a space of its own.
            if piece.startswith(b" ") and not self._tokenizer.is_unknown(token_id):
                self.dropped, piece = " ", piece[1:]
        return text + piece.decode()

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for each byte of an incomplete character, or for all of them."""
        if self._decoder:
            return self._decoder.decode(b"", final=True)
        return self._take_characters(final=True)

    def _take_characters(self, *, final: bool) -> str:
        """Remove the complete characters from the bytes and return them. If ``final``, remove all bytes."""
        text = ""
        while self._bytes:
            try:
                characters, used = codecs.utf_8_decode(self._bytes, "strict", final)
            except UnicodeDecodeError as error:
                # Each byte becomes one U+FFFD. Python's own "replace" would make one of several bytes.
                characters, used = self._bytes[: error.start].decode() + REPLACEMENT, error.start + 1
            if not used:
                break
            text += characters
            self._bytes = self._bytes[used:]
        return text


def read_model(content: bytes) -> Any:
    """Return a SentencePiece model, parsed: a ``ModelProto``. Raises ``ValueError`` if it is none, or damaged.

    SentencePiece itself trusts what it reads.
    """
    if len(content) > TOKENIZER_AT_MOST:
        raise ValueError(f"it is larger than {TOKENIZER_AT_MOST:,} bytes")
    try:
        model = schema.ModelProto.FromString(content)
    except DecodeError as error:
        raise ValueError("it is no SentencePiece model, or damaged") from error
    if not 0 < len(model.pieces) <= MAX_VOCAB:
        raise ValueError(f"it has {len(model.pieces)} pieces")
    seen = set()
    for i, piece in enumerate(model.pieces):
        if not isinstance(piece.piece, str):  # protobuf gives what is not UTF-8 as bytes
            raise ValueError(f"its piece {i} is not UTF-8")
        if not piece.piece or len(piece.piece) > PIECE_AT_MOST or piece.piece in seen:
            raise ValueError(f"its piece {i} is empty, too long, or the same as an earlier one")
        if not math.isfinite(piece.score):
            raise ValueError(f"its piece {i} has the score {piece.score}")
        if piece.type == Piece.BYTE and not BYTE_PIECE.fullmatch(piece.piece):
            raise ValueError(f"its piece {i} should be a byte like <0x0A>")
        seen.add(piece.piece)
    if sum(piece.type == Piece.UNKNOWN for piece in model.pieces) != 1:
        raise ValueError("it has not exactly one piece for unknown text")
    return model


def model_from_bin(content: bytes) -> Any:
    """Return the SentencePiece model that a ``tokenizer.bin`` was written from: a ``ModelProto``.

    The layout has the pieces and their scores, but not their types and not the normalization. The types are inferred.
    The normalization is that of Llama's tokenizers: none, but a space before the text. Raises ``ValueError``.
    """
    pieces, bos_id, eos_id = _read_bin(content)
    texts = [text for text, _ in pieces]
    if UNKNOWN_PIECE not in texts:
        raise ValueError(f"it has no {UNKNOWN_PIECE} piece")
    types = _infer_types(pieces, unk_id=texts.index(UNKNOWN_PIECE), bos_id=bos_id, eos_id=eos_id)

    model = schema.ModelProto()
    for (text, score), kind in zip(pieces, types, strict=True):
        model.pieces.add(piece=text.replace(" ", SPACE), score=score, type=kind)
    trainer = model.trainer_spec
    trainer.model_type = schema.TrainerSpec.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = Piece.BYTE in types
    trainer.unk_id, trainer.bos_id, trainer.eos_id = texts.index(UNKNOWN_PIECE), bos_id, eos_id
    trainer.bos_piece, trainer.eos_piece = texts[bos_id], texts[eos_id]
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return model


def _read_bin(content: bytes) -> tuple[list[tuple[str, float]], int, int]:
    """Return ``(pieces with their scores, bos_id, eos_id)``. Raises ``ValueError`` if the content is damaged."""
    try:
        vocab_size, bos_id, eos_id, _ = BIN_HEADER.unpack_from(content)
        if vocab_size > MAX_VOCAB:
            raise ValueError(f"it says that it has {vocab_size} pieces")
        offset = BIN_HEADER.size
        pieces = []
        for _ in range(vocab_size):
            score, length = BIN_PIECE.unpack_from(content, offset)
            offset += BIN_PIECE.size + length
            if length > PIECE_AT_MOST or not math.isfinite(score):
                raise ValueError("a piece is too long, or its score is not a number")
            pieces.append((content[offset - length : offset].decode(), score))
    except struct.error as error:
        raise ValueError("it ends too early") from error
    if offset != len(content):
        raise ValueError(f"its {vocab_size} pieces take {offset} bytes and it has {len(content)}")
    if max(bos_id, eos_id) >= vocab_size:
        raise ValueError(f"BOS {bos_id} or EOS {eos_id} is not among its {vocab_size} pieces")
    return pieces, bos_id, eos_id


def _infer_types(pieces: list[tuple[str, float]], *, unk_id: int, bos_id: int, eos_id: int) -> list[int]:
    """Return the types of the pieces, inferred from how SentencePiece's trainer writes scores.

    Ordinary pieces follow the byte pieces, with the scores -0.0, -1, -2 and so on. Added pieces have the score +0.0.
    An added piece may be matched in text (user-defined) or not (control), and the file does not tell which. We take all
    of them for user-defined, except ``<pad>``.
    """
    byte_ids = [index for index, (text, _) in enumerate(pieces) if BYTE_PIECE.fullmatch(text)]
    first_ordinary = (
        byte_ids[-1] + 1 if byte_ids else None
    )  # in case a tool has written its score -0.0 without the sign
    types = []
    for index, (text, score) in enumerate(pieces):
        if index == unk_id:
            types.append(Piece.UNKNOWN)
        elif index in (bos_id, eos_id) or text == "<pad>":
            types.append(Piece.CONTROL)
        elif BYTE_PIECE.fullmatch(text):
            types.append(Piece.BYTE)
        elif score == 0 and math.copysign(1, score) > 0 and index != first_ordinary:
            types.append(Piece.USER_DEFINED)
        else:
            types.append(Piece.NORMAL)
    return types
