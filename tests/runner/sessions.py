"""Sessions of a tiny model, computed by either engine.

Tests of sessions compute in Python, with a model that is not real. ``tests/integration/test_engine.py`` runs them a
second time, in a process that computes with the C++ engine: there the environment variable ``LLAVA_TEST_PROGRAM`` names
a program that computes the same.
"""

from __future__ import annotations

import os
from pathlib import Path

from llava_runner.contract import ModelCard
from llava_runner.conversation import Conversation
from llava_runner.model_conversation import ModelConversation
from llava_runner.session import Session
from llava_runner.tokenizer_file import AnyTokenizer, load_tokenizer
from tests.runner.fake_program import FakeProgram, make_card

CARD_BYTES = 8000  # with spaces behind it
PROGRAM = os.environ.get("LLAVA_TEST_PROGRAM")  # its tokenizer.model and tokenizer.bin are next to it
REPEATING = "repeating.pte"  # next to it, too: the program whose answers repeat themselves


def template_card(vocab_size: int) -> str:
    """Return the card of a program that is made for ``with_card``."""
    return make_card(vocab_size=vocab_size).to_json().ljust(CARD_BYTES)


def with_card(program: bytes, card: ModelCard) -> bytes:
    """Return a program with another card."""
    old, new = (text.encode() for text in (template_card(card.vocab_size), card.to_json().ljust(CARD_BYTES)))
    assert program.count(old) == 1 and len(old) == len(new)
    return program.replace(old, new)


def model_session(model: FakeProgram, tokenizer: AnyTokenizer) -> Session:
    """Return a session that computes with a model in Python."""
    return Session(ModelConversation(model, tokenizer=tokenizer))


def tiny_session(card: ModelCard, *, tokenizer_model: Path, folder: Path, repeats: bool = False) -> Session:
    """Return a session with a tiny model, computed by the engine that this process tests."""
    if PROGRAM is None:
        return model_session(FakeProgram(card, repeats=repeats), load_tokenizer(tokenizer_model))
    program = Path(PROGRAM).with_name(REPEATING) if repeats else Path(PROGRAM)
    path = folder / f"{len(list(folder.glob('*.pte')))}.pte"
    path.write_bytes(with_card(program.read_bytes(), card))
    return Session.load(path, tokenizer=Path(PROGRAM).with_name("tokenizer.bin"), engine="cpp")


def conversation_of(session: Session) -> Conversation:
    """Return what computes a session's answers."""
    with session._conversation.alone() as conversation:
        return conversation


def has_not_run(session: Session) -> bool:
    """Return whether a session's model has computed nothing yet."""
    conversation = conversation_of(session)
    if isinstance(conversation, ModelConversation):
        assert isinstance(conversation._model, FakeProgram)
        return conversation._model.calls == 0
    return session.position == 0 and session.last.timings.prompt.count == 0
