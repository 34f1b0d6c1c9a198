"""``Session`` on the engine, with the real model. ``tests/runner/test_session*.py`` run on it, too."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

from llava_runner.engine_conversation import EngineConversation
from llava_runner.errors import PackageError, PromptError, StateError
from llava_runner.session import Session
from tests.engine.test_c_interface import NEW_TOKENS, QUESTION, ROOT
from tests.runner.sessions import conversation_of

FOLLOW_UP = "How many shapes are there?"


@pytest.fixture(scope="module")
def session(package):
    with Session.load(package) as session:
        yield session


def test_a_package_is_opened_with_the_engine_where_it_is_built(session):
    assert isinstance(conversation_of(session), EngineConversation)


def test_answers_are_those_of_the_python_runner(session, scenes):
    for i, scene in enumerate(scenes):
        image = (scene.path, scene.content, Image.open(scene.path))[i % 3]
        assert session.ask(image, scene.question, max_new_tokens=NEW_TOKENS) == scene.text
        assert session.last.ids == tuple(scene.ids)


def test_an_answer_given_is_as_one_that_was_written(session, scenes):
    for scene in scenes[:25]:
        text = session.ask(scene.path, scene.question)
        written = session.last.ids
        assert session.last.stop_reason == "eos"
        expected = "".join(session.chat(FOLLOW_UP))
        session.generate(scene.path, scene.question)
        session.set_answer(text)
        assert session.last.ids == written[:-1]
        assert "".join(session.chat(FOLLOW_UP)) == expected


def test_a_conversation_is_kept(session, scenes, tmp_path):
    scene = scenes[2]
    session.ask(scene.path, scene.question)
    saved, position = session.save(), session.position
    session.save(tmp_path / "kept")
    expected = "".join(session.chat(FOLLOW_UP))
    for kept in (saved, tmp_path / "kept"):
        session.ask(None, "Something else?", max_new_tokens=2)
        session.restore(kept)
        assert (session.position, session.last.ids) == (position, ())
        assert "".join(session.chat(FOLLOW_UP)) == expected
        assert session.last.timings.prompt.count < 40  # the image is not read again
    with pytest.raises(StateError, match="it is no saved conversation"):
        session.restore(b"")
    session.generate(scene.path, scene.question)
    session.set_answer("It is red and blue.")  # not read yet
    saved = session.save()
    expected = "".join(session.chat(FOLLOW_UP))
    session.reset()
    session.restore(saved)
    assert "".join(session.chat(FOLLOW_UP)) == expected


@pytest.mark.usefixtures("session")  # has loaded the engine; where that is not, the Python runtime may be
def test_what_cannot_be_opened(package, monkeypatch):
    with pytest.raises(PromptError, match=r"engine 'rust': it must be one of cpp, python"):
        Session.load(package, engine="rust")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="the C\\+\\+ engine is in this process already"):
        Session.load(package, engine="python")
    with pytest.raises(PackageError, match=r"takes a tokenizer\.bin or tokenizer\.json"):
        Session.load(package, tokenizer=package / "tokenizer.model", engine="cpp")
    monkeypatch.setenv("LLAVA_ENGINE", "off")
    with pytest.raises(PackageError, match="the C\\+\\+ engine is not here"):
        Session.load(package, engine="cpp")


def test_a_missing_tokenizer_is_named_where_only_the_engine_is_installed(package, tmp_path, monkeypatch):
    (tmp_path / "llava.pte").symlink_to(package / "llava.pte")
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(PackageError, match=r"tokenizer\.bin does not exist"):
        Session.load(tmp_path)


def test_no_more_than_numpy_and_pillow_is_needed(package):
    code = f"""
import sys
for name in ("torch", "executorch", "sentencepiece", "tokenizers", "google"):
    sys.modules[name] = None  # importing it fails
from llava_runner.session import Session
print(Session.load({str(package)!r}).ask({str(package / "image.png")!r}, {QUESTION!r}, max_new_tokens=5))
files = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
packages = {{file.partition("site-packages/")[2].partition("/")[0] for file in files}}
print(sorted(name for name in packages if name and not name.startswith("_")))  # pip's own begin so
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "['PIL', 'numpy']", done.stdout + done.stderr
