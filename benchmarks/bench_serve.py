"""Times a server: what it saves where an image, or a conversation, comes again."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from http.client import HTTPConnection
from typing import Any, NoReturn
from urllib.parse import urlsplit

from benchmarks.serve_clients import noise
from llava_export.cli.terminal import new_console, plain_table
from llava_runner.arguments import ArgumentParser, positive_int, run_command

QUESTIONS = (
    "What is in the image?",
    "How many shapes are there?",
    "What color is the circle?",
    "Is there a red square?",
    "Where is the blue triangle?",
)
TURNS = len(QUESTIONS)
DESCRIPTION = """Time a server, by images of noise and five questions about each.

The first token is what a client waits for: of a first question, of another first
question about the same image, and of a fifth turn. Then several conversations take
turns, and are compared with the same ones one after the other. The figures are
medians.
"""
EPILOG = """example, beside llava serve package:
  python -m benchmarks.bench_serve http://127.0.0.1:8080
"""


class Client:
    """A client of one server."""

    def __init__(self, url: str, *, max_tokens: int, side: int) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=600)
        self._max_tokens = max_tokens
        self._side = side
        self._images = 0

    def new_image(self) -> str:
        """Return an image that the server has not seen, as a URL."""
        self._images += 1
        return noise(int(time.time()) * 1000 + self._images, side=self._side)

    def ask(self, messages: list[dict[str, Any]]) -> tuple[float, float, dict[str, Any]]:
        """Return the seconds to the first token and to the last, and the server's own timings.

        The answer becomes a part of the conversation.
        """
        body = {"messages": messages, "temperature": 0, "max_tokens": self._max_tokens, "stream": True}
        begun = time.perf_counter()
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        text, first = "", 0.0
        timings: dict[str, Any] = {}
        for line in response:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                text += chunk["choices"][0]["delta"].get("content", "")
                timings = chunk.get("timings", timings)
                first = first or (time.perf_counter() - begun if text else 0.0)
        messages.append({"role": "assistant", "content": text})
        return first, time.perf_counter() - begun, timings


def question(number: int, url: str | None = None) -> dict[str, Any]:
    """Return a question by its number, with an image."""
    image = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    return {"role": "user", "content": [*image, {"type": "text", "text": QUESTIONS[number]}]}


def take_turns(client: Client, conversations: int, order: Iterable[tuple[int, int]]) -> list[float]:
    """Ask in an order of (conversation, turn). Return the seconds of each turn after the first."""
    messages: list[list[dict[str, Any]]] = [[] for _ in range(conversations)]
    seconds = []
    for which, turn in order:
        messages[which].append(question(turn, None if turn else client.new_image()))
        _, whole, _ = client.ask(messages[which])
        seconds += [whole] if turn else []
    return seconds


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.bench_serve", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("url", metavar="URL", help="where llava serve listens")
    parser.add_argument("--runs", type=positive_int, default=5, metavar="N", help="images to ask about (default: 5)")
    parser.add_argument(
        "--conversations", type=positive_int, default=10, metavar="N", help="that take turns (default: 10)"
    )
    parser.add_argument("--max-tokens", type=positive_int, default=8, metavar="N", help="of an answer (default: 8)")
    parser.add_argument("--side", type=positive_int, default=336, metavar="N", help="of an image (default: 336 pixels)")
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    client = Client(arguments.url, max_tokens=arguments.max_tokens, side=arguments.side)
    table = plain_table("what", "first token", "positions read", right=("first token", "positions read"))
    times: dict[str, list[tuple[float, int]]] = {}

    def note(what: str, messages: list[dict[str, Any]]) -> None:
        first, _, timings = client.ask(messages)
        times.setdefault(what, []).append((first, timings["prompt_n"]))

    for _ in range(arguments.runs):
        url = client.new_image()
        note("a question about a new image", [question(0, url)])
        messages = [question(1, url)]
        note("another first question about it", messages)
        for turn in range(2, TURNS):
            messages.append(question(turn))
            note(f"turn {turn} of that conversation", messages)
    for what, found in times.items():
        first = statistics.median(seconds for seconds, _ in found)
        table.add_row(what, f"{1000 * first:.1f} ms", str(round(statistics.median(count for _, count in found))))
    console = new_console()
    console.print(table)
    count = arguments.conversations
    alone = take_turns(client, count, [(which, turn) for which in range(count) for turn in range(TURNS)])
    in_turn = take_turns(client, count, [(which, turn) for turn in range(TURNS) for which in range(count)])
    slower = statistics.median(in_turn) / statistics.median(alone)
    console.print(
        f"a later turn of {count} conversations: {1000 * statistics.median(alone):.1f} ms one after the other, "
        f"{1000 * statistics.median(in_turn):.1f} ms in turn, {slower:.2f} times as long"
    )


if __name__ == "__main__":
    main()
