"""Asks a package many questions, from many threads and in many sessions, and counts wrong answers and memory.

Every question has a right answer: the one that a session of its own gives. The memory is what is resident and no
file's content, measured after a tenth of the work and at the end.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from llava_export.cli.terminal import new_console, plain_table
from llava_runner.arguments import ArgumentParser, path, positive_int, run_command
from llava_runner.contract import IMAGE_FILE
from llava_runner.program_file import find_program
from llava_runner.session import Session
from llava_runner.timings import anonymous_memory

QUESTIONS = (
    "What is in the image?",
    "How many shapes are there?",
    "What color is the circle?",
    "Is there a red square?",
    "Where is the blue triangle?",
)
ALLOWED_GROWTH = 32 << 20  # bytes; what an allocator keeps may differ by so much, and a leak is far more
EPILOG = """example:
  python -m benchmarks.endurance demo --threads 20 --sessions 100 --questions 10000

exit code: 0 all answers are right and memory is flat, 1 otherwise
"""


class Endurance:
    """The questions about a package, and their right answers."""

    def __init__(self, open_session: Callable[[], Session], *, image: Path | None, max_new_tokens: int = 8) -> None:
        self._open_session = open_session
        self._images = (None, image) if image else (None,)
        self._max_new_tokens = max_new_tokens
        with open_session() as session:
            self._expected = [self.answer(session, index) for index in range(len(QUESTIONS) * len(self._images))]

    def answer(self, session: Session, index: int) -> str:
        """Return the answer to a question by its number. Numbers go on for ever, questions come again."""
        image = self._images[index // len(QUESTIONS) % len(self._images)]
        return session.ask(image, QUESTIONS[index % len(QUESTIONS)], max_new_tokens=self._max_new_tokens)

    def is_right(self, session: Session, index: int) -> bool:
        """Ask, and return whether the answer is right."""
        return self.answer(session, index) == self._expected[index % len(self._expected)]

    def by_threads(self, *, questions: int, threads: int) -> tuple[int, int]:
        """Ask one session from many threads. Return how many answers were wrong, and how much memory grew in bytes."""
        with self._open_session() as session, ThreadPoolExecutor(threads) as pool:
            return wrong_and_growth(questions, lambda many: list(pool.map(lambda i: self.is_right(session, i), many)))

    def by_sessions(self, *, sessions: int) -> tuple[int, int]:
        """Open sessions in turn and ask each once. Return what ``by_threads`` returns."""

        def ask(index: int) -> bool:
            with self._open_session() as session:
                return self.is_right(session, index)

        return wrong_and_growth(sessions, lambda many: list(map(ask, many)))


def wrong_and_growth(count: int, ask: Callable[[range], list[bool]]) -> tuple[int, int]:
    """Return how many of ``count`` answers are wrong, and how much memory grew after the first tenth of them."""
    first = max(1, count // 10)
    right = ask(range(first))
    before = resident()
    right += ask(range(first, count))
    return count - sum(right), resident() - before


def resident() -> int:
    """Return the memory that this process holds, in bytes, without what waits to be collected."""
    gc.collect()
    return anonymous_memory() or 0


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(
        prog="python -m benchmarks.endurance",
        description="Ask a package from many threads and in many sessions. Count wrong answers, and watch memory.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("package", type=path, metavar="PACKAGE", help="a .pte, or the folder of a package")
    add("--threads", type=positive_int, default=20, metavar="N", help="threads with one session (default: %(default)s)")
    add("--sessions", type=positive_int, default=100, metavar="N", help="sessions in turn (default: %(default)s)")
    add("--questions", type=positive_int, default=10_000, metavar="N", help="of all threads (default: %(default)s)")
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> int:
    """Ask, print a table, and return the exit code."""
    program = find_program(arguments.package)
    image = program.parent / IMAGE_FILE
    endurance = Endurance(lambda: Session.load(program), image=image if image.exists() else None)
    results = {
        f"{arguments.sessions} sessions": endurance.by_sessions(sessions=arguments.sessions),
        f"{arguments.questions} questions by {arguments.threads} threads": endurance.by_threads(
            questions=arguments.questions, threads=arguments.threads
        ),
    }
    table = plain_table("work", "wrong", "memory grew", right=("wrong", "memory grew"))
    for work, (wrong, growth) in results.items():
        table.add_row(work, str(wrong), f"{growth / 2**20:.1f} MiB")
    new_console().print(table)
    return int(any(wrong or growth > ALLOWED_GROWTH for wrong, growth in results.values()))


if __name__ == "__main__":
    main()
