"""Text to token ids and back, from ``tokenizer.model`` (SentencePiece) or ``tokenizer.bin`` (llama2c's layout)."""

from __future__ import annotations

import codecs
import math
import re
import struct
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from llava_runner.errors import PackageError, PromptError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes a space in a piece this way
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# A tokenizer.bin has the vocabulary size, the BOS id, the EOS id and the length of the longest piece in bytes. Then it
# has the score, the length and the bytes of each piece.
BIN_HEADER = struct.Struct("<IIII")
BIN_PIECE = struct.Struct("<fI")

schema: Any = sentencepiece_model_pb2  # its classes are made at import, where type checkers do not see them
Piece = schema.ModelProto.SentencePiece


class Tokenizer:
    """A SentencePiece tokenizer (BPE), with the calls that a session needs."""

    def __init__(self, processor: SentencePieceProcessor) -> None:
        self._processor = processor
        self.vocab_size: int = processor.vocab_size()
        self.bos_id: int = processor.bos_id()
        self.eos_id: int = processor.eos_id()

    @classmethod
    def open(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer: ``*.bin`` in llama2c's layout, any other file as a SentencePiece model.

        Raises ``PackageError`` if the file is missing, damaged or of another kind.
        """
        path = Path(path)
        if not path.is_file():
            raise PackageError(f"{path} is not a tokenizer file" if path.exists() else f"{path} does not exist")
        content = path.read_bytes()
        try:
            model = _model_from_bin(content) if path.suffix == ".bin" else content
            processor = SentencePieceProcessor()
            processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError) as error:
            raise PackageError(
                f"{path} is not a tokenizer that can be read (tokenizer.model of SentencePiece, "
                f"or tokenizer.bin): {error}"
            ) from error
        return cls(processor)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS. A space is put before the first word, as in training.

        Raises ``PromptError`` for text that is not Unicode, such as a command line in another encoding.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the prompt is not valid Unicode at character {error.start}") from error
        return self._processor.encode(text)

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


class TextStream:
    """A decoder that turns tokens into text as they come, in whole characters.

    All that it returns, joined, equals SentencePiece's ``decode(ids)``. Like SentencePiece it drops one space at the
    beginning of the text, and shows each byte that is part of no character as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = b""  # the first bytes of a character that is not complete yet
        self._at_start = True

    def push(self, token_id: int) -> str:
        """Return the characters that a token completes, which are often none."""
        piece = self._tokenizer.decode_piece(token_id)
        if self._tokenizer.is_byte(token_id):
            self._at_start = False
            self._bytes += piece
            return self._take_characters(final=False)
        text = self.flush()
        if self._at_start and piece:
            self._at_start = False
            if not self._tokenizer.is_unknown(token_id):  # the text of the unknown token begins with a space of its own
                piece = piece.removeprefix(b" ")
        return text + piece.decode()

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for each byte of an incomplete character."""
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


def _model_from_bin(content: bytes) -> bytes:
    """Return the SentencePiece model that a ``tokenizer.bin`` was written from, as a serialized protobuf.

    The layout has the pieces and their scores, but not their types and not the normalization. The types are inferred.
    The normalization is that of Llama's tokenizers: none, but a space before the text. Raises ``ValueError``.
    """
    pieces, bos_id, eos_id = _read_bin(content)
    texts = [text for text, _ in pieces]
    if "<unk>" not in texts:
        raise ValueError("it has no <unk> piece")
    types = _infer_types(pieces, unk_id=texts.index("<unk>"), bos_id=bos_id, eos_id=eos_id)

    model = schema.ModelProto()
    for (text, score), kind in zip(pieces, types, strict=True):
        model.pieces.add(piece=text.replace(" ", SPACE), score=score, type=kind)
    trainer = model.trainer_spec
    trainer.model_type = schema.TrainerSpec.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = Piece.BYTE in types
    trainer.unk_id, trainer.bos_id, trainer.eos_id = texts.index("<unk>"), bos_id, eos_id
    trainer.bos_piece, trainer.eos_piece = texts[bos_id], texts[eos_id]
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def _read_bin(content: bytes) -> tuple[list[tuple[str, float]], int, int]:
    """Return ``(pieces with their scores, bos_id, eos_id)``. Raises ``ValueError`` if the content is damaged."""
    try:
        vocab_size, bos_id, eos_id, _ = BIN_HEADER.unpack_from(content)
        offset = BIN_HEADER.size
        pieces = []
        for _ in range(vocab_size):
            score, length = BIN_PIECE.unpack_from(content, offset)
            offset += BIN_PIECE.size + length
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
