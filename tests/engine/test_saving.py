"""Conversations that are kept: answers go on as if nothing had been, and what is damaged is refused."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from llava_runner.errors import StateError
from tests.engine.test_c_interface import QUESTION, ROOT, answer, asked


def test_answers_after_restoring_are_those_without(engine, scenes, tmp_path):
    path = tmp_path / "conversation"
    for i, scene in enumerate(scenes):
        engine.reset()
        asked(engine, scene.content, scene.question, max_new_tokens=i % 7 + 1)
        engine.save(path)
        saved = engine.save()
        assert saved == path.read_bytes()
        follow_ups = ("Is it red?", "How many shapes are there?")
        expected = [answer(engine, follow_up, max_new_tokens=20) for follow_up in follow_ups]
        for kept in (path, saved):
            engine.reset()
            answer(engine, "Something else?", max_new_tokens=3)
            engine.restore(kept)
            assert [answer(engine, follow_up, max_new_tokens=20) for follow_up in follow_ups] == expected


def test_a_conversation_is_kept_without_the_guess_that_is_being_checked(engine, scenes):
    cut = 0
    for count in range(20, 28):
        answers = []
        for draft_max in (-1, 7):
            engine.reset()
            engine.add_image(scenes[0].content)
            engine.begin(scenes[0].question, draft_max=draft_max)
            while (length := engine.last().num_tokens) < count:
                engine.logits()[300 + length % 5] = 1000
                engine.next()
            cut += engine.last().num_drafted > engine.last().num_accepted
            saved = engine.save()
            answers.append(answer(engine, "Is it red?", max_new_tokens=20))
            engine.reset()
            engine.restore(saved)
            answers.append(answer(engine, "Is it red?", max_new_tokens=20))
        assert len(set(answers)) == 1
    assert cut > 2


def test_another_process_goes_on(library, engine, scenes, package, tmp_path):
    scene = scenes[4]
    asked(engine, scene.content, scene.question)
    engine.save(tmp_path / "conversation")
    expected = answer(engine, "Is it red?", max_new_tokens=20)
    code = (
        "import sys; from pathlib import Path; from llava_runner.engine import Engine; "
        f"engine = Engine({str(package)!r}, library=Path({str(library)!r})); "
        f"engine.restore({str(tmp_path / 'conversation')!r}); "
        "engine.ask('Is it red?', lambda piece: print(piece, end=''), max_new_tokens=20)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=-1, text=True, cwd=ROOT) for _ in range(2)]
    assert [run.communicate()[0] for run in runs] == [expected] * 2


def test_what_is_damaged_is_refused(engine, scenes):
    scene = scenes[5]
    asked(engine, scene.content, scene.question)
    saved = engine.save()
    expected = answer(engine, "Is it red?", max_new_tokens=20)
    random = np.random.default_rng(0)
    for i in range(300):
        altered = bytearray(saved)
        if i % 3 == 0:
            del altered[random.integers(len(altered)) :]
        elif i % 3 == 1:
            at = random.integers(min(len(altered), 4000 if i % 2 else len(altered)))
            altered[at] ^= 1 << random.integers(8)
        else:
            altered += random.bytes(int(random.integers(1, 100)))
        with pytest.raises(StateError, match="the saved conversation cannot be restored"):
            engine.restore(bytes(altered))
    engine.restore(saved)
    assert answer(engine, "Is it red?", max_new_tokens=20) == expected


def test_an_interrupted_save_leaves_the_old_file(engine, scenes, tmp_path):
    path = tmp_path / "conversation"
    engine.ask(QUESTION, max_new_tokens=3)
    engine.save(path)
    before = path.read_bytes()
    scene = scenes[6]
    asked(engine, scene.content, scene.question, max_new_tokens=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StateError, match="cannot be written: File too large"):
            engine.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_saved_conversation_is_refused(engine, tmp_path):
    for path, reason in (
        (tmp_path / "nothing", "No such file"),
        (tmp_path, "it is not a file"),
        (ROOT / "README.md", "it is no saved conversation"),
    ):
        with pytest.raises(StateError, match=reason):
            engine.restore(path)
    with pytest.raises(StateError, match="cannot be written"):
        engine.save(tmp_path / "nowhere" / "conversation")
