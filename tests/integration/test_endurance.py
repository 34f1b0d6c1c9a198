"""Many questions, by many threads and in many sessions. ``python -m benchmarks.endurance`` asks more of them."""

from __future__ import annotations

import mmap

import pytest

from benchmarks.endurance import ALLOWED_GROWTH, Endurance
from llava_runner.session import Session
from llava_runner.tokenizer_file import load_tokenizer
from tests.runner.fake_program import FakeProgram, make_card
from tests.runner.sessions import model_session


def test_the_built_in_model(tiny_package):
    image = tiny_package.folder / "image.png"
    endurance = Endurance(lambda: Session.load(tiny_package.folder), image=image, max_new_tokens=4)
    for wrong, growth in (endurance.by_threads(questions=100, threads=20), endurance.by_sessions(sessions=10)):
        assert wrong == 0 and growth < ALLOWED_GROWTH


def test_a_model_without_a_runtime(tiny_package):
    tokenizer = load_tokenizer(tiny_package.folder / "tokenizer.model")
    card = make_card(vocab_size=tokenizer.vocab_size)
    endurance = Endurance(lambda: model_session(FakeProgram(card), tokenizer), image=tiny_package.folder / "image.png")
    for wrong, growth in (endurance.by_threads(questions=1000, threads=20), endurance.by_sessions(sessions=100)):
        assert wrong == 0 and growth < ALLOWED_GROWTH / 2


def test_what_is_wrong_is_counted(tiny_package):
    """A model whose answers drift, and which keeps four mebibytes of each image, of which none was there before."""
    tokenizer = load_tokenizer(tiny_package.folder / "tokenizer.model")
    card = make_card(vocab_size=tokenizer.vocab_size)
    kept: list[mmap.mmap] = []

    class Leaking(FakeProgram):
        def encode_image(self, pixels):
            kept.append(mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE))
            kept[-1].write(b"x" * (4 << 20))
            return super().encode_image(pixels) * len(kept)

    endurance = Endurance(
        lambda: model_session(Leaking(card), tokenizer), image=tiny_package.folder / "image.png", max_new_tokens=4
    )
    wrong, growth = endurance.by_threads(questions=40, threads=2)
    assert wrong > 0 and growth == pytest.approx(18 * (4 << 20), rel=0.3)
