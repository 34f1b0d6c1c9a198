"""The C interface of the C++ runner: the answers are those of the Python runner, and mistakes are defined errors."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_runner.contract import ModelCard
from llava_runner.engine import IMAGE_ERROR, MISUSE, Engine
from llava_runner.engine_library import OnText, load_library
from llava_runner.errors import ImageError, PackageError, PromptError
from llava_runner.image import prepare_image_for

ROOT = Path(__file__).parents[2]
QUESTION = "What is in the image?"
NEW_TOKENS = 40  # that test_engine.py asked for


def answer(engine, question, **options):
    pieces: list[str] = []
    engine.ask(question, pieces.append, **options)
    return "".join(pieces)


def asked(engine, image, question, **options):
    engine.add_image(image)
    return answer(engine, question, **options)


def test_answers_are_those_of_the_python_runner(engine, scenes):
    for scene in scenes:
        text = asked(engine, scene.content, scene.question, new_conversation=1, max_new_tokens=NEW_TOKENS)
        assert (text, engine.last_ids()) == (scene.text, scene.ids)


def test_pixels_and_tensors_are_images_too(engine, scenes):
    scene = scenes[0]
    image = Image.open(scene.path).convert("RGB")
    pixels = np.pad(np.asarray(image), ((0, 0), (0, 5), (0, 0)))  # rows that are further apart than they are long
    engine._call("llava_add_pixels", pixels.ctypes.data, image.width, image.height, pixels.strides[0])
    assert answer(engine, scene.question, max_new_tokens=NEW_TOKENS) == scene.text
    engine.reset()
    engine.add_tensor(prepare_image_for(ModelCard.from_json(engine.model_card()), image))
    assert answer(engine, scene.question, max_new_tokens=NEW_TOKENS) == scene.text


def test_an_image_is_read_once(engine, scenes):
    scene = scenes[1]
    first = asked(engine, scene.content, scene.question)
    read = engine.last().prompt.count
    assert engine.last().image.count == engine.describe().num_image_tokens
    engine.reset()
    assert asked(engine, scene.content, scene.question) == first
    assert (engine.last().image.count, engine.last().prompt.count) == (0, 1)
    engine.reset()
    asked(engine, scene.content, "How many shapes are there?")
    assert engine.last().image.count == 0
    assert engine.last().prompt.count < read - engine.describe().num_image_tokens


def test_images_that_are_read_ahead_change_no_answer(engine, scenes):
    for scene in scenes[:5]:
        engine.reset()
        engine.add_image(scene.content)
        engine.read_ahead()
        assert engine.describe().position == 0
        assert answer(engine, scene.question, max_new_tokens=NEW_TOKENS) == scene.text
        assert engine.last().image.count == 0


def test_an_answer_is_pulled_token_by_token(engine, scenes):
    scene = scenes[2]
    engine.add_image(scene.content)
    engine.begin(scene.question, max_new_tokens=NEW_TOKENS)
    pieces = []
    while (piece := engine.next()) is not None:
        pieces.append(piece)
        assert len(pieces) == engine.last().num_tokens
    assert "".join(pieces) == scene.text
    assert engine.next() is None and engine.logits() is None


def test_logits_are_changed_before_a_token_is_chosen(engine, scenes):
    scene = scenes[3]
    engine.add_image(scene.content)
    engine.begin(scene.question, max_new_tokens=6)
    ruled_out = []
    while (logits := engine.logits()) is not None:
        ruled_out.append(int(logits.argmax()))
        second = int(np.argsort(logits)[-2])
        logits[ruled_out[-1]] = -np.inf
        engine.next()
        assert engine.last_ids()[-1] == second
    assert len(ruled_out) == 6 or engine.last().stop_reason == 1


def test_cancelling_ends_an_answer_within_a_token(engine, scenes):
    scene = scenes[0]
    pieces = []

    def cancel_at_second(piece):
        pieces.append(piece)
        if len(pieces) == 2:
            engine.cancel()

    engine.add_image(scene.content)
    engine.ask(scene.question, cancel_at_second)
    assert len(pieces) == 2 and engine.last().stop_reason == 4
    engine.ask("And now?", lambda piece: True)
    assert engine.last().stop_reason == 4

    started = threading.Event()
    thread = threading.Thread(target=lambda: (started.wait(), engine.cancel()))
    thread.start()
    seen = []

    def wait_for_it(piece):
        seen.append(piece)
        started.set()
        thread.join()

    engine.ask("What is in the image?", wait_for_it)
    assert len(seen) == 1 and engine.last().stop_reason == 4
    engine.cancel()  # no answer is being made: nothing happens
    engine.ask("How many?", max_new_tokens=2)
    assert engine.last().stop_reason in (1, 2)


def test_what_a_callback_raises_ends_the_answer(engine, scenes):
    scene = scenes[0]
    calls = []

    def fail(piece):
        calls.append(piece)
        raise KeyError("mine")

    engine.add_image(scene.content)
    with pytest.raises(KeyError, match="mine"):
        engine.ask(scene.question, fail)
    assert len(calls) == 1 and engine.last().stop_reason == 4
    assert engine.describe().position > 0


def test_a_callback_may_not_use_its_session(engine):
    errors = []

    def call_back(_):
        for call in (engine.reset, engine.describe, lambda: engine.ask("again"), engine.close):
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))
        return True

    engine.ask(QUESTION, call_back)
    assert len(errors) == 4 and all("its callback may only cancel" in error for error in errors)


def test_mistakes_leave_the_conversation_as_it_was(engine, scenes):
    scene = scenes[0]
    asked(engine, scene.content, scene.question, max_new_tokens=3)
    position = engine.describe().position
    with pytest.raises(PromptError, match="temperature -1"):
        engine.ask("x", temperature=-1)
    with pytest.raises(PromptError, match="the prompt is empty"):
        engine.ask("  ")
    with pytest.raises(PromptError, match="seq_len 100000"):
        engine.ask("x", seq_len=100000)
    with pytest.raises(PromptError, match="max_new_tokens -2"):
        engine.ask("x", max_new_tokens=-2)
    with pytest.raises(ImageError, match="the image"):
        engine.add_image(b"no image at all")
    with pytest.raises(ImageError, match="the image"):
        engine.add_image(scene.content[:100])
    engine.add_image(scene.content)
    with pytest.raises(PromptError, match="<image> 2 times, and the number of images is 1"):
        engine.ask("<image> <image> x", new_conversation=1)
    engine.remove_images()
    assert engine.describe().position == position
    answer(engine, "And now?", max_new_tokens=3)
    assert engine.describe().position > position


def test_misuse_is_an_error(library, engine, scenes):
    functions, number = load_library(library), engine._number
    last = ctypes.c_size_t()
    for status in (
        functions.llava_open(None, None, ctypes.byref(ctypes.c_int64())),
        functions.llava_open(b"x", None, None),
        functions.llava_begin(number, None, None),
        functions.llava_ask(number, None, None, OnText(), None),
        functions.llava_next(number, None, None),
        functions.llava_add_image(number, None, 5),
        functions.llava_add_pixels(number, None, 5, 5, 15),
        functions.llava_add_pixels(number, b"0" * 75, 5, 5, 14),
        functions.llava_add_tensor(number, None, 5, 5),
        functions.llava_logits(number, None, None),
        functions.llava_last(number, None),
        functions.llava_last_ids(number, None, 5, ctypes.byref(last))
        if functions.llava_begin(number, b"a", None)
        else MISUSE,
        functions.llava_last_ids(number, None, 0, None),
        functions.llava_last_logprobs(number, 1 << 40, None, 0, ctypes.byref(last)),
        functions.llava_describe(number, None),
        functions.llava_model_card(number, None),
        functions.llava_set_answer(number, None),
        functions.llava_count_tokens(number, None, ctypes.byref(last)),
        functions.llava_count_tokens(number, b"a", None),
        functions.llava_save(number, None),
        functions.llava_restore(number, None),
        functions.llava_save_bytes(number, None, 0, None),
        functions.llava_restore_bytes(number, None, 3),
        functions.llava_describe(-7, None),
        functions.llava_cancel(0),
        functions.llava_reset(1 << 60),
    ):
        assert status == MISUSE, functions.llava_error()
        assert functions.llava_error()
    for width, height in ((0, 5), (-1, 5), (5, 1 << 30), (1, 5)):
        assert functions.llava_add_pixels(number, b"0" * 75, width, height, 1 << 40) == IMAGE_ERROR
        assert functions.llava_add_tensor(number, b"0" * 75, width, height) == IMAGE_ERROR


def test_a_closed_session_is_refused(library, package):
    engine = Engine(package, library=library)
    engine.close()
    for call in (engine.close, engine.reset, lambda: engine.ask("x"), engine.describe, engine.cancel):
        with pytest.raises(RuntimeError, match=r"session \d+ is not open"):
            call()


def test_what_cannot_be_opened_is_refused(library, package, tmp_path):
    with pytest.raises(PackageError, match="nowhere"):
        Engine(tmp_path / "nowhere", library=library)
    with pytest.raises(PackageError, match="does not exist"):
        Engine(package, library=library, tokenizer=tmp_path / "nowhere.bin")
    with pytest.raises(PromptError, match="cpu_threads -1"):
        Engine(package, library=library, cpu_threads=-1)


def test_weights_are_packed_while_no_other_program_is_loaded(library, package, tmp_path):
    copies = [shutil.copytree(package, tmp_path / name, ignore=shutil.ignore_patterns("*.packed")) for name in "ab"]
    code = f"""
from pathlib import Path
from llava_runner.engine import Engine

def packed():
    return [len(list(Path(folder).glob("*.packed"))) for folder in {[str(copy) for copy in copies]}]

first, second = (Engine(folder, library=Path({str(library)!r})) for folder in {[str(copy) for copy in copies]})
print(packed())
first.close()
second.close()
third = Engine({str(copies[1])!r}, library=Path({str(library)!r}))
third.ask({QUESTION!r}, max_new_tokens=3)
print(packed())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[1, 0]\n[1, 1]\n", done.stderr
    assert "another program is loaded" in done.stderr


def test_texts_that_c_cannot_hold_are_refused(engine):
    for call in (engine.ask, engine.begin, engine.set_answer, engine.count_tokens):
        with pytest.raises(PromptError, match="zero byte, at byte 4"):
            call("What\0 is it?")
        with pytest.raises(PromptError, match="not valid Unicode at character 1"):
            call("a\udc80")
    with pytest.raises(PromptError, match="zero byte, at byte 0"):
        engine.ask(QUESTION, stops=["\0"])
