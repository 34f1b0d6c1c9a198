from __future__ import annotations

import io
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

from llava_runner.contract import MAX_LOGITS_TO_KEEP
from llava_runner.tokenizer_file import load_tokenizer
from tests.runner.fake_program import make_card
from tests.runner.sessions import PROGRAM, tiny_session

SENTENCES = [
    "What is in the image? There is a red circle left of a blue square.",
    "How many shapes are there? There are 12 shapes, 345 dots and 1 line.",
    "What color is the triangle above the circle?  It is green.",
    "    indented   text\twith tabs, naïve café über ½ “quotes”",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
]


def train_tokenizer(output: Path, **options) -> Path:
    """Write a small SentencePiece model, trained with the options of Llama's tokenizer, and return its path."""
    buffer = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=buffer,
        model_type="bpe",
        **{"vocab_size": 420, **options},
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    output.write_bytes(buffer.getvalue())
    return output


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory) -> Path:
    if PROGRAM is not None:
        return Path(PROGRAM).with_name("tokenizer.model")
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture
def tokenizer(tokenizer_model):
    return load_tokenizer(tokenizer_model)


@pytest.fixture
def make_session(tokenizer, tokenizer_model, tmp_path_factory):
    """Return a function that makes a session with a tiny model, and a card with changed values.

    With ``repeats``, its answers repeat themselves, and the model gives the logits of several tokens.
    """
    sessions = []

    def make(*, repeats=False, **card):
        kept = MAX_LOGITS_TO_KEEP if repeats else 1
        changed = make_card(vocab_size=tokenizer.vocab_size, logits_to_keep=kept, **card)
        folder = tmp_path_factory.mktemp("session")
        sessions.append(tiny_session(changed, tokenizer_model=tokenizer_model, folder=folder, repeats=repeats))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


@pytest.fixture(scope="session")
def tiny_pte(tmp_path_factory) -> Path:
    """Return a program for the tokenizer of ``tokenizer_model``. A call takes 8 positions and gives the
    logits of 4, the context holds 128.
    """
    from tests.runner.tiny_program import build_pte

    path = tmp_path_factory.mktemp("program") / "llava.pte"
    path.write_bytes(build_pte(make_card(vocab_size=420, max_seq_len=8, logits_to_keep=4)))
    return path


@pytest.fixture
def package(tiny_pte, tokenizer_model, tmp_path) -> Path:
    """Return the folder of a package: ``tiny_pte`` and its tokenizer."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "llava.pte").write_bytes(tiny_pte.read_bytes())
    (folder / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    return folder
