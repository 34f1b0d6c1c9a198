"""The two files of a package's tokenizer say the same, or the export stops and names what ``tokenizer.bin`` lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceTrainer

from llava_export.checkpoint.pieces import sentencepiece_model
from llava_export.checkpoint.tokenizer import open_tokenizer
from llava_export.errors import CheckpointError
from llava_export.pte.package.tokenizer import check_same, write_tokenizer
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.prompt import Span
from llava_runner.tokenizer import Piece, schema
from llava_runner.tokenizer_file import load_tokenizer
from tests.checkpoints import TINY_LLAVA

MODEL = (TINY_LLAVA / "tokenizer.model").read_bytes()


def write(checkpoint: Path, folder: Path) -> None:
    """Write the files of the tokenizer in a checkpoint's folder."""
    write_tokenizer(open_tokenizer(checkpoint, vocab_size=576, chunks_are_texts=True), folder)


def edited(folder: Path, change: Callable[[Any], None]) -> Path:
    """Write the built-in tokenizer with a change to a folder. Return the folder."""
    model = schema.ModelProto.FromString(MODEL)
    change(model)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder


def setting(name: str, value: Any) -> Callable[[Any], None]:
    """Return a change of a setting like ``normalizer_spec.add_dummy_prefix``."""
    part, field = name.split(".")
    return lambda model: setattr(getattr(model, part), field, value)


def added(text: str, kind: int, score: float) -> Callable[[Any], None]:
    """Return a change that adds a piece."""
    return lambda model: model.pieces.add(piece=text, type=kind, score=score)


def renamed_unknown(model: Any) -> None:
    """Give the piece for unknown text another name."""
    model.pieces[0].piece = model.trainer_spec.unk_piece = "[UNK]"


OF_NEITHER_RUNTIME = [
    (setting("normalizer_spec.add_dummy_prefix", False), "no space before the text"),
    (setting("normalizer_spec.remove_extra_whitespaces", True), "removes repeated spaces"),
    (setting("normalizer_spec.escape_whitespaces", False), "does not escape spaces"),
    (setting("trainer_spec.treat_whitespace_as_suffix", True), "spaces behind words"),
    (setting("trainer_spec.byte_fallback", False), "byte_fallback does not fit"),
    (setting("trainer_spec.model_type", 1), "of the kind UNIGRAM, not BPE"),
    (setting("trainer_spec.model_type", 4), "of the kind CHAR, not BPE"),
]
OF_NO_BIN = [
    (renamed_unknown, "no <unk> piece"),
    (added("zz z", Piece.NORMAL, -900.0), "'zz z', is read as 'zz▁z'"),
    (setting("trainer_spec.unk_surface", "?"), "unk_surface is '?'"),
]


@pytest.mark.parametrize(("change", "message"), OF_NEITHER_RUNTIME)
def test_tokenizers_that_no_file_of_an_export_can_express_are_refused_by_name(change, message, tmp_path):
    with pytest.raises(CheckpointError, match=f"tokenizer.model is not a SentencePiece model .*{message}"):
        sentencepiece_model(edited(tmp_path, change))  # for GGUF, too


@pytest.mark.parametrize(("change", "message"), OF_NO_BIN)
def test_tokenizers_that_tokenizer_bin_cannot_express_are_refused_by_name(change, message, tmp_path):
    folder = edited(tmp_path, change)
    assert sentencepiece_model(folder)
    with pytest.raises(CheckpointError, match=r"tokenizer.bin cannot express") as error:
        write(folder, tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        added("[SEG]", Piece.USER_DEFINED, 0.0),
        added("[SEG]", Piece.USER_DEFINED, -2.0),
        added("[SEG]", Piece.USER_DEFINED, -0.0),
        added("[SEG]", Piece.CONTROL, -7.0),
        added("[SEG]", Piece.UNUSED, -900.0),
        added("<pad>", Piece.CONTROL, 0.0),
        added("<pad>", Piece.USER_DEFINED, 0.0),
        added("zzz", Piece.NORMAL, -900.0),
    ],
)
def test_added_pieces_are_the_same_in_both_files(change, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    tokenizer = open_tokenizer(edited(tmp_path, change), vocab_size=576, chunks_are_texts=True)
    write_tokenizer(tokenizer, out)
    model, binary = (
        ChatTokenizer(load_tokenizer(out / name), rules=tokenizer.rules, bos_id=1)
        for name in ("tokenizer.model", "tokenizer.bin")
    )
    for text in ("[SEG]", "a[SEG]b", "<pad> <pad>", "zzz zzz"):
        for is_template in (True, False):
            ids = model.encode_turn([(Span(text, is_template),)])
            assert ids == binary.encode_turn([(Span(text, is_template),)])
    assert [model.decode_piece(i) for i in range(513)] == [binary.decode_piece(i) for i in range(513)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "UNIGRAM"),
        ({"model_type": "bpe"}, "removes repeated spaces"),  # a default of the trainer
        ({"model_type": "bpe", "remove_extra_whitespaces": False}, "changes characters .*nmt_nfkc"),
        (
            {"model_type": "bpe", "remove_extra_whitespaces": False, "normalization_rule_name": "nfkc"},
            "changes characters .*nfkc",
        ),
    ],
)
def test_tokenizers_of_other_training_are_refused(options, message, tmp_path):
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=message):
        write(tmp_path, tmp_path)


def test_every_difference_between_the_files_is_seen(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write(edited(tmp_path, lambda model: None), out)
    binary = (out / "tokenizer.bin").read_bytes()
    check_same(MODEL, binary)
    for place in (4, 8):  # BOS and EOS
        with pytest.raises(ValueError, match=r"is CONTROL|is NORMAL|special tokens"):
            check_same(MODEL, binary[:place] + (300).to_bytes(4, "little") + binary[place + 4 :])
    last = schema.ModelProto.FromString(MODEL).pieces[-1].piece.replace("▁", " ").encode()
    assert binary.endswith(last)
    with pytest.raises(ValueError, match="is read as"):
        check_same(MODEL, binary[:-1] + b"Q")
    at = len(binary) - len(last) - 8
    with pytest.raises(ValueError, match="is read as"):
        check_same(MODEL, binary[:at] + b"\x00\x00\x00\xc0" + binary[at + 4 :])
