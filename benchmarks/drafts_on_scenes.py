"""Asks about scenes with guessed tokens and without, and counts the answers that differ."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from llava_export.cli.terminal import new_console, progress
from llava_runner.arguments import ArgumentParser, positive_int, run_command
from llava_runner.draft import DRAFT_MAX
from llava_runner.engine_library import ENGINES
from llava_runner.session import Session
from training import questions

EPILOG = """example:
  llava export --model tiny-llava --output-dir package --with-artifacts
  python -m benchmarks.draft_equality package --scenes 500

exit code: 0 if no token differs, 1 otherwise
"""


@dataclass
class Counts:
    """What was seen: answers with their tokens, those that differ, and guesses."""

    answers: int = 0
    tokens: int = 0
    differ: int = 0
    drafted: int = 0
    accepted: int = 0


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(
        prog="python -m benchmarks.draft_equality",
        description="Ask about scenes with guessed tokens and without, and count the answers that differ.",
        epilog=EPILOG,
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE")
    parser.add_argument("--scenes", type=positive_int, default=500, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--engine", choices=ENGINES, help="as for llava run")
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Ask as the command line says. Exits with 1 if an answer differs."""
    console, counts = new_console(), Counts()
    with (
        Session.load(arguments.package, engine=arguments.engine) as session,
        progress(console, steps=arguments.scenes) as step,
    ):
        for seed in range(questions.HELD_OUT_SEED, questions.HELD_OUT_SEED + arguments.scenes):
            step("scenes")
            ask_twice(session, seed, counts)
        console.print(
            f"{session.engine} engine: {counts.answers} answers of {counts.tokens} tokens, {counts.differ} of them "
            f"differ; {counts.accepted} of {counts.drafted} guessed tokens were right"
        )
    if counts.differ:
        raise SystemExit(1)


def ask_twice(session: Session, seed: int, counts: Counts) -> None:
    """Have a conversation of three turns about a scene, with guesses and without. The first question comes again."""
    image, question, _ = questions.question_for(seed)
    other = questions.question_for(seed + 1)[1]
    found: list[list[tuple[int, ...]]] = []
    for draft_max in (0, DRAFT_MAX):
        session.reset()
        found.append([])
        for turn, text in enumerate((question, other, question)):
            for _ in session.chat(text, image=image if turn == 0 else None, draft_max=draft_max):
                pass
            found[-1].append(tuple(session.last.ids))
            counts.drafted += session.last.timings.drafted
            counts.accepted += session.last.timings.accepted
    for plain, guessed in zip(*found, strict=True):
        counts.answers += 1
        counts.tokens += len(plain)
        counts.differ += plain != guessed


if __name__ == "__main__":
    main()
