"""Asks a server many questions from many clients, a third of which go away, and counts wrong answers and memory.

Every question has a right answer: the one that the server gave while nobody else asked.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from llava_export.cli.terminal import new_console, plain_table
from llava_runner.arguments import ArgumentParser, positive_int, run_command

QUESTIONS = ("What is in the image?", "How many shapes are there?", "Is there a red square?")
EARLIER = ("What color is the circle?", "It is blue.")
ALLOWED_GROWTH = 32 << 20  # bytes; what an allocator keeps may differ by so much, and a leak is far more
RESIDENT = re.compile(r"^process_resident_memory_bytes (\S+)", re.MULTILINE)
SAVED = re.compile(r"^llava_saved_conversations_bytes (\S+)", re.MULTILINE)
EPILOG = """example, beside llava serve demo:
  python -m benchmarks.serve_clients http://127.0.0.1:8080 --minutes 30

exit code: 0 all answers are right and memory is flat, 1 otherwise
"""


@dataclass
class Result:
    """What happened: numbers of requests, and how much memory the server took after a tenth of the time and later."""

    counts: Counter[str] = field(default_factory=Counter)
    before: int = 0
    after: int = 0

    @property
    def is_good(self) -> bool:
        """Whether every answer was right, and memory is flat."""
        is_right = not self.counts.keys() - {"right", "cut off", "refused"}
        return is_right and self.after - self.before <= ALLOWED_GROWTH


class Clients:
    """Clients of one server."""

    def __init__(self, url: str, *, images: int = 4, max_tokens: int = 24) -> None:
        """Ask all questions once, for their right answers."""
        self._address = urlsplit(url).netloc
        self._max_tokens = max_tokens
        urls = [None, *map(noise, range(images))]
        self._dialogues = [messages(text, url, more) for url in urls for text in QUESTIONS for more in (False, True)]
        self._right = [self._answer(each, is_cut=False) for each in self._dialogues]

    def run(self, *, clients: int, requests: int | None = None, seconds: float | None = None) -> Result:
        """Ask from many clients at a time, so many requests in all or for so long. Return what happened."""
        result = Result()
        begun = time.monotonic()

        def is_over(share: float) -> bool:
            asked = sum(result.counts.values())
            return (requests is not None and asked >= share * requests) or (
                seconds is not None and time.monotonic() - begun >= share * seconds
            )

        def ask_on(seed: int) -> None:
            dice = random.Random(seed)
            while not is_over(1):
                result.counts[self._ask(dice)] += 1

        with ThreadPoolExecutor(clients) as pool:
            asking = [pool.submit(ask_on, seed) for seed in range(clients)]
            while not is_over(0.1):
                time.sleep(0.05)
            result.before = self.resident()
            for each in asking:
                each.result()
        result.after = self.resident()
        return result

    def resident(self) -> int:
        """Return the memory that is resident in the server, without its saved conversations, in bytes."""
        connection = HTTPConnection(self._address, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        resident, saved = (pattern.search(text) for pattern in (RESIDENT, SAVED))
        return int(float(resident[1]) - float(saved[1])) if resident and saved else 0

    def _ask(self, dice: random.Random) -> str:
        """Ask a question. Return what came of it."""
        number, is_cut = dice.randrange(len(self._dialogues)), dice.random() < 1 / 3
        try:
            found = self._answer(self._dialogues[number], is_cut=is_cut, events=dice.randrange(6))
        except (OSError, HTTPException) as error:
            return type(error).__name__
        if found is None or found == 429:
            return "cut off" if found is None else "refused"
        return "right" if found == self._right[number] else "wrong"

    def _answer(self, dialogue: list[dict[str, Any]], *, is_cut: bool, events: int = 0) -> str | int | None:
        """Return the text of an answer, or its status if there is none. None if the client goes after some events."""
        connection = HTTPConnection(self._address, timeout=600)
        body = {"messages": dialogue, "temperature": 0, "max_tokens": self._max_tokens, "stream": is_cut}
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            if is_cut and not events:
                return None  # before anything was read
            response = connection.getresponse()
            if response.status != 200:
                return response.status
            if is_cut:
                for _ in range(2 * events):
                    response.readline()
                return None
            return json.loads(response.read())["choices"][0]["message"]["content"]
        finally:
            with suppress(OSError):
                connection.close()


def messages(text: str, url: str | None, has_past: bool) -> list[dict[str, Any]]:
    """Return a conversation that ends with a question; its first turn has the image."""
    first, answer = EARLIER if has_past else (text, "")
    image = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    found = [{"role": "user", "content": [*image, {"type": "text", "text": first}]}]
    if has_past:
        found += [{"role": "assistant", "content": answer}, {"role": "user", "content": text}]
    return found


def noise(seed: int, *, side: int = 96) -> str:
    """Return an image of noise as a URL."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.serve_clients", description=__doc__, epilog=EPILOG)
    parser.add_argument("url", metavar="URL", help="where llava serve listens")
    parser.add_argument("--clients", type=positive_int, default=20, metavar="N", help="at a time (default: 20)")
    parser.add_argument("--requests", type=positive_int, metavar="N", help="of all clients (default: 200)")
    parser.add_argument("--minutes", type=positive_int, metavar="N", help="ask for so long instead")
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> int:
    """Ask, and print what happened. Return the exit code."""
    seconds = None if arguments.minutes is None else 60.0 * arguments.minutes
    requests = arguments.requests or (200 if seconds is None else None)
    result = Clients(arguments.url).run(clients=arguments.clients, requests=requests, seconds=seconds)
    table = plain_table("requests", "number")
    for name, count in sorted(result.counts.items()):
        table.add_row(name, str(count))
    console = new_console()
    console.print(table)
    before, after = result.before >> 20, result.after >> 20
    console.print(f"memory without saved conversations: {before} MiB after a tenth, {after} MiB at the end")
    return 0 if result.is_good else 1


if __name__ == "__main__":
    main()
