"""The Java binding of the C++ runner, on this machine's JVM. ``tests/engine/java`` has the cases."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.prompt import Span
from llava_runner.session import Session
from llava_runner.tokenizer import BIN_HEADER, BIN_PIECE
from llava_runner.tokenizer_file import load_tokenizer
from tests.engine.test_c_interface import NEW_TOKENS
from tests.integration.conftest import ROOT, lacking

EMOJI_QUESTIONS = ("What color is the 🟦?", "🦙🦙 How many shapes are there? 👩🏽‍🚀", "Ünïcödé: 這是什麼?", "🟦")


def with_emoji(content: bytes) -> bytes:
    """Return a ``tokenizer.bin`` in which the piece for a square is an emoji."""
    header = BIN_HEADER.size
    place = content.index(b" square", header) - BIN_PIECE.size
    score, length = BIN_PIECE.unpack_from(content, place)
    piece = " 🟦".encode()
    return content[:place] + BIN_PIECE.pack(score, len(piece)) + piece + content[place + BIN_PIECE.size + length :]


def answers(session: Session, scenes: list[dict], questions: tuple[str, ...]) -> list[dict]:
    """Return scenes with other questions, and the Python runner's answers."""
    found = []
    for scene, question in zip(scenes, questions, strict=False):
        text = session.ask(scene["path"], question, max_new_tokens=NEW_TOKENS)
        found.append({**scene, "question": question, "text": text, "ids": session.last.ids})
    return found


def log_probabilities(session: Session, scene: dict) -> tuple[str, ...]:
    """Return the three largest log probabilities in the place of each token of the Python runner's answer."""
    session.ask(scene["path"], scene["question"], max_new_tokens=NEW_TOKENS, logprobs=3)
    assert session.last.logprobs
    return tuple(",".join(str(likely.logprob) for likely in token.top) for token in session.last.logprobs)


def write_rows(path: Path, rows: Iterable[tuple[object, ...]]) -> None:
    """Write a file that Java reads: a row in a line, fields between tabs."""
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def write_scenes(path: Path, scenes: list[dict]) -> None:
    """Write scenes for Java: image, question, answer, token ids."""
    write_rows(
        path, [(each["path"], each["question"], each["text"], ",".join(map(str, each["ids"]))) for each in scenes]
    )


@pytest.fixture
def java_data(tiny_package, scenes, tmp_path) -> Path:
    """Return a folder with what the Python runner answers, and with a tokenizer that has an emoji."""
    known = [{**scene, "path": scenes.parent / scene["name"]} for scene in json.loads(scenes.read_text())]
    write_scenes(tmp_path / "scenes.tsv", known)
    emoji = tmp_path / "emoji.bin"
    emoji.write_bytes(with_emoji((tiny_package.folder / "tokenizer.bin").read_bytes()))
    with Session.load(tiny_package.folder, tokenizer=emoji) as session:
        squares = [scene for scene in known if "square" in scene["text"]]
        found = answers(session, squares, tuple(scene["question"] for scene in squares[:5]) + EMOJI_QUESTIONS)
        write_scenes(tmp_path / "emoji.tsv", found)
        encode = ChatTokenizer.of(session.card, load_tokenizer(tiny_package.folder / "tokenizer.bin")).encode_turn
    counts = {text: len(encode([(Span(text, False),)], before=0)[0]) for text in ("a", *EMOJI_QUESTIONS)}
    write_rows(tmp_path / "counts.tsv", counts.items())
    with Session.load(tiny_package.folder) as session:
        write_rows(tmp_path / "logprobs.tsv", [log_probabilities(session, scene) for scene in known[:5]])
    return tmp_path


def names_of(path: Path, enum: str) -> list[str]:
    """Return the names of an enum of C or Java, without what C puts around them."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    (block,) = re.findall(rf"enum {enum} \{{(.*?)\}}", text, re.DOTALL)
    names = re.findall(r"^ +(?:LLAVA_)?(?:STOP_)?([A-Z_]+)\b", block, re.MULTILINE)
    return [name.removesuffix("_ERROR") for name in names]


@pytest.mark.parametrize(
    ("in_c", "file", "in_java", "first"),
    [("llava_status", "LlavaException", "Status", 2), ("llava_stop_reason", "Answer", "StopReason", 0)],
    ids=str,
)
def test_numbers_of_the_c_interface_are_places_in_java(in_c, file, in_java, first):
    in_header = names_of(ROOT / "runner/cpp/engine/llava.h", in_c)
    in_class = names_of(ROOT / f"runner/java/org/llava/{file}.java", in_java)
    assert in_class and in_header[first:] == in_class


def test_the_java_binding(native_build, tiny_package, java_data):
    if not shutil.which("javac"):
        lacking("the Java binding", "apt-get install default-jdk-headless")
    classes, written = java_data / "classes", java_data / "written"
    written.mkdir()
    sources = sorted((ROOT / "tests/engine/java").glob("*.java"))
    jar = native_build / "llava.jar"
    flags = ["-encoding", "UTF-8", "-Xlint:all", "-Werror"]
    subprocess.run(["javac", *flags, "-cp", jar, "-d", classes, *sources], check=True)
    # The JVM checks each call of the native code, and says so where one is wrong. Its heap is all there from the start.
    flags = ["-Xcheck:jni", "-Xms64m", "-Xmx64m", "-XX:+AlwaysPreTouch", f"-Djava.library.path={native_build}"]
    command = ["java", *flags, "-cp", f"{jar}:{classes}", "Cases", tiny_package.folder, java_data, written]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.endswith(" passed\n")
    assert not re.search(r"WARNING.*(JNI|native method)|FATAL", done.stdout + done.stderr), done
