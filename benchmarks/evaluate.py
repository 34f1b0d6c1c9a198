"""Measures the exact-match accuracy of a package on scenes that no training saw, and of its checkpoint in float.

Scene i is the i-th held-out seed of ``training/questions.py``: a question about a rendered image. Answers are compared
as text.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.float_model import FloatModel
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.cli.terminal import new_console, plain_table
from llava_runner.arguments import ArgumentParser, positive_int, run_command
from llava_runner.contract import ModelCard
from llava_runner.program import Program
from llava_runner.session import Session
from llava_runner.tokenizer import Tokenizer
from training import questions

MAX_NEW_TOKENS = 40
DESCRIPTION = """Ask a package about scenes that no training saw, and count the right answers.

A scene is a rendered image with one question. The table has a row for each
type of question. Only the built-in models know these scenes.
"""
EPILOG = """examples:
  python -m benchmarks.evaluate demo/llava.pte --scenes 200
  python -m benchmarks.evaluate demo/llava.pte --scenes 200 --float tiny-llava
"""

Answer = Callable[[Image.Image, str], str]


@dataclass
class FloatPackage(FloatModel):
    """The float model with the card of a package, so that a session can run it like the package's program."""

    card: ModelCard


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.evaluate", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("package", type=Path, metavar="PTE", help="the program of the package")
    add("--scenes", type=positive_int, default=200, metavar="N", help="how many to ask about (default: %(default)s)")
    add("--float", metavar="MODEL", help="also ask this checkpoint, in float32")
    add("--at-least", type=float, metavar="FRACTION", help="exit with 1 if an accuracy is below this one")
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> int:
    """Ask, print the table, and return the exit code."""
    console = new_console()
    answers = {str(arguments.package): package_answers(arguments.package)}
    if arguments.float:
        answers[f"{arguments.float} in float32"] = float_answers(arguments.float, package=arguments.package)
    results = {
        label: accuracy(answer, count=arguments.scenes, console=console, label=label)
        for label, answer in answers.items()
    }
    table = plain_table("question", *results, right=tuple(results))
    asked = next(iter(results.values()))[1]
    for kind in sorted(asked):
        table.add_row(kind, *(f"{right[kind]} / {asked[kind]}" for right, _ in results.values()))
    totals = {label: right.total() / asked.total() for label, (right, asked) in results.items()}
    table.add_row("all", *(f"{total:.1%}" for total in totals.values()), style="bold")
    console.print(table)
    least = arguments.at_least
    return 1 if least is not None and min(totals.values()) < least else 0


def package_answers(path: Path) -> Answer:
    """Return a function that asks the Python runner with a package's program."""
    return session_answers(Session.load(path))


def float_answers(model: str, *, package: Path) -> Answer:
    """Return a function that asks a checkpoint in float32, with the package's prompt and preprocessing."""
    checkpoint = open_checkpoint(model)
    card = Program.open(package).card
    modules = checkpoint.build_model(max_context_len=card.max_context_len)
    checkpoint.weights.fill(modules, prefix="")
    tokenizer = Tokenizer.open(package.parent / "tokenizer.model")
    float_package = FloatPackage(modules, card=card)
    # Session is annotated with Program, and calls no more than what a Model with a card has.
    return session_answers(Session(float_package, tokenizer=tokenizer))


def session_answers(session: Session) -> Answer:
    """Return a function that answers greedily. Each question begins with an empty context."""
    return lambda image, question: session.ask(image, question, max_new_tokens=MAX_NEW_TOKENS).strip()


def accuracy(answer: Answer, *, count: int, console: Console, label: str) -> tuple[Counter[str], Counter[str]]:
    """Ask about ``count`` scenes. Return the right answers and the questions asked, by type of question."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for i in track(range(count), description=label, console=console, transient=True):
        seed = questions.HELD_OUT_SEED + i
        image, question, expected = questions.question_for(seed)
        kind = questions.question_type_for(seed)
        asked[kind] += 1
        right[kind] += answer(image, question) == expected
    return right, asked


if __name__ == "__main__":
    main()
