"""The command ``llava serve`` on a real package, as a process of its own."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llava_runner.contract import IMAGE_FILE
from llava_runner.engine_library import LIBRARY, VARIABLE

QUESTION = "What is in the image?"
AGAIN = "How many shapes are there?"
NEW_TOKENS = 24


@dataclass
class Serving:
    """A server in a process, and where it listens."""

    process: subprocess.Popen[str]
    url: str

    def ask(self, *messages: dict[str, Any]) -> dict[str, Any]:
        """Return a whole answer."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        body = {"messages": messages, "temperature": 0, "max_tokens": NEW_TOKENS}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        return json.loads(response.read())

    def verify(self) -> dict[str, str]:
        """Return the verdict on the package."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=120)
        connection.request("POST", "/package/verification", "{}", {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        return json.loads(response.read())

    def get(self, path: str) -> bytes:
        """Return what the server tells at a path."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        connection.request("GET", path)
        return connection.getresponse().read()


def command(*arguments: object) -> list[str]:
    """Return the command line of a server at a free port."""
    return [sys.executable, "-m", "llava_runner.command", "serve", *map(str, arguments)]


@pytest.fixture
def serve(native_build) -> Iterator[Callable[..., Serving]]:
    """Return a function that serves a package. The process is told to end after the test."""
    processes = []

    def start(*arguments: object) -> Serving:
        process = subprocess.Popen(
            command(*arguments, "--port", 0),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, VARIABLE: str(native_build / LIBRARY)},
        )
        processes.append(process)
        assert process.stdout
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:\d+/", line)
        assert found, process.communicate(timeout=10)[1]
        return Serving(process, found[0])

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def image_message(package: Path, text: str) -> dict[str, Any]:
    """Return a question about the package's image."""
    url = "data:image/png;base64," + base64.b64encode((package / IMAGE_FILE).read_bytes()).decode()
    return {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
    }


@pytest.mark.parametrize("engine", ["cpp", "python"])
def test_both_engines_answer_as_llava_run(serve, package, engine):
    """The next turn reads its own tokens alone."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "llava_runner", str(package), "--image", str(package / IMAGE_FILE), "--json"),
            *("--prompt", QUESTION, "--max-new-tokens", str(NEW_TOKENS), "--interactive"),
        ],
        input=AGAIN,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = map(json.loads, done.stdout.splitlines())
    server = serve(package, "--engine", engine)
    reply = server.ask(image_message(package, QUESTION))
    assert reply["choices"][0]["message"]["content"] == first["text"]
    assert reply["usage"]["prompt_tokens"] == first["timings"]["prompt_tokens"]
    assistant = {"role": "assistant", "content": first["text"]}
    again = server.ask(image_message(package, QUESTION), assistant, {"role": "user", "content": AGAIN})
    assert again["choices"][0]["message"]["content"] == second["text"]
    assert again["timings"]["prompt_n"] == second["timings"]["prompt_tokens"] < 20
    assert json.loads(server.get("/package"))["engine"] == engine


def test_conversations_in_turn_find_their_states(serve, package):
    """Without ``--saved-mib`` they are read again, and answered the same."""
    server, forgetful = serve(package), serve(package, "--saved-mib", 0)
    questions = [image_message(package, QUESTION), image_message(package, AGAIN)]
    answers = [server.ask(each)["choices"][0]["message"] for each in questions]
    following = {"role": "user", "content": "What color is the circle?"}
    for question, answer in zip(questions, answers, strict=True):
        reply = server.ask(question, answer, following)
        assert reply["timings"]["prompt_n"] < 20
        assert reply["timings"]["image_n"] == 0
        again = forgetful.ask(question, answer, following)
        assert again["timings"]["prompt_n"] > 20
        assert again["choices"] == reply["choices"]


@pytest.mark.parametrize("engine", ["cpp", "python"])
def test_a_draft_changes_no_answer_of_conversations_in_turn(serve, package, engine):
    """Without an image, the model itself is a draft whose guesses are right."""
    plain, drafted = serve(package, "--engine", "cpp"), serve(package, "--engine", engine, "--model-draft", package)
    conversations: list[list[dict[str, Any]]] = [
        [image_message(package, QUESTION)],
        [{"role": "user", "content": AGAIN}],
    ]
    for _ in range(2):
        for messages in conversations:
            found, expected = (server.ask(*messages) for server in (drafted, plain))
            assert found["choices"][0]["message"] == expected["choices"][0]["message"]
            assert found["timings"]["draft_n"] >= found["timings"]["draft_n_accepted"]
            messages += [found["choices"][0]["message"], {"role": "user", "content": "What color is the circle?"}]
    assert found["timings"]["draft_n_accepted"] >= found["timings"]["draft_n"] - 1 > 2


def test_the_verdict_is_that_of_llava_verify(serve, package):
    """Also on a file that was changed since the start."""
    server = serve(package)
    assert json.loads(server.get("/package"))["verification"]["can_verify"] is True
    image = package / IMAGE_FILE
    content = image.read_bytes()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    text = f"{IMAGE_FILE} is not the file that was exported: its SHA-256 differs\n\nFAIL: not what was exported"
    assert server.verify() == {"verdict": "FAIL", "text": text}
    image.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "llava_runner.command", "verify", str(package)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert serve(package).verify() == {"verdict": "PASS", "text": done.stdout.rstrip()}


def test_a_signal_ends_the_server_after_the_running_answer(serve, package):
    server = serve(package)
    assert json.loads(server.get("/health"))["status"] == "ok"
    server.process.send_signal(signal.SIGTERM)
    out, err = server.process.communicate(timeout=30)
    assert (server.process.returncode, out) == (128 + signal.SIGTERM, "")
    assert "Traceback" not in err


def test_what_cannot_be_served_is_one_line_and_code_2(package, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            (package, "--port", port): f"cannot listen at 127.0.0.1, port {port}: Address already in use",
            (package, "--host", "no.such.host.invalid"): "cannot listen at no.such.host.invalid, port 8080",
            (tmp_path / "nothing", "--port", 0): "does not exist",
            (package, "--port", 70000): "--port: 70000 must be from 0 to 65535",
            (package, "--draft-model-path", tmp_path, "--port", 0): f"{tmp_path} has ",
            (package, "--saved-mib", -1): "--saved-mib must be 0 or more",
            (package, "--api-key", ""): "an API key has printable ASCII characters",
        }
        for arguments, message in cases.items():
            done = subprocess.run(command(*arguments), capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
