"""Asks about scenes with each way to guess tokens and without guesses: right guesses, and what they do to the time.

Answers must be the same in every way. Those that differ are counted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from PIL import Image
from rich.table import Table

from llava_export.benchmark.rounds import machine
from llava_export.cli.flags import file_to_write
from llava_export.cli.terminal import new_console, plain_table, progress
from llava_export.evaluate import intervals
from llava_runner.arguments import ArgumentParser, add_engine, add_threads, path, positive_int, run_command
from llava_runner.draft import DRAFT_MAX
from llava_runner.session import Session
from training import questions

PLAIN, LOOKUP, MODEL = "no guesses", "prompt lookup", "draft model"
KINDS = {"first answers": slice(2), "repeated answers": slice(2, 3)}  # by the turns of a conversation
COLUMNS = ("tokens", "guesses right", "differ", "ms/token", "times plain")
Ways = dict[str, tuple[Session, int]]  # session and the most tokens to guess, by name
EPILOG = """examples:
  llava export --model tiny-llava --output-dir package --with-artifacts
  python -m benchmarks.drafts_on_scenes package
  python -m training.draft --output draft
  llava export --model draft --text-only --output-dir draft-package
  python -m benchmarks.drafts_on_scenes package --draft-model-path draft-package --json drafts.json

exit code: 0 if no answer differs, 1 otherwise
"""


@dataclass(frozen=True)
class Said:
    """An answer: its tokens, those that were guessed and those of them that were right, and the time of decoding."""

    ids: tuple[int, ...]
    drafted: int
    accepted: int
    ms: float
    evals: int


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(
        prog="python -m benchmarks.drafts_on_scenes",
        description="Ask about scenes with guessed tokens and without. Count right guesses and answers that differ, "
        "and compare the time of decoding. Only the built-in models know the scenes.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("package", type=path, metavar="PACKAGE")
    add("--draft-model-path", type=path, metavar="PACKAGE", help="a model that drafts, as for llava run")
    add("--scenes", type=positive_int, default=500, metavar="N", help="(default: %(default)s)")
    add("--json", type=file_to_write, metavar="FILE", help="also write the figures")
    add_engine(parser)
    add_threads(parser)
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Ask as the command line says. Exits with 1 if an answer differs."""
    console, draft = new_console(), arguments.draft_model_path
    load = partial(Session.load, arguments.package, engine=arguments.engine, cpu_threads=arguments.threads)
    with ExitStack() as stack:
        session = stack.enter_context(load())
        ways: Ways = {PLAIN: (session, 0), LOOKUP: (session, DRAFT_MAX)}
        if draft:
            ways[MODEL] = stack.enter_context(load(draft_model_path=draft)), DRAFT_MAX
        step = stack.enter_context(progress(console, steps=arguments.scenes))
        ask_in_turn(ways, arguments.scenes)  # to warm up
        said = []
        for number in range(arguments.scenes):
            step("scenes")
            said.append(ask_in_turn(ways, number))
    found = figures(said)
    for kind in KINDS:
        console.print(figures_table(kind, found), "")
    if arguments.json:
        written = {"machine": machine(), "engine": session.engine, "scenes": len(said), "ways": found}
        arguments.json.write_text(json.dumps(written, indent=2) + "\n")
    if any(row["differ"] for rows in found.values() for row in rows.values()):
        raise SystemExit(1)


def conversation(number: int) -> tuple[Image.Image, tuple[str, str, str]]:
    """Return the image of a held-out scene, and three questions about it. The last one repeats the first.

    It asks for a description in other words, so the answer comes again. The second one is of every type in turn.
    """
    seed = questions.HELD_OUT_SEED + number
    scene = questions.render_scene(seed)
    first, again = (question for question, _ in scene.questions_by_type["description"][:2])
    kind = questions.question_type_for(seed)
    between, _ = scene.questions_by_type["count" if kind == "description" else kind][0]
    return scene.image, (first, between, again)


def ask_in_turn(ways: Ways, number: int) -> dict[str, list[Said]]:
    """Have the conversation about a scene in each way. Return the answers. Each scene begins with another way."""
    names = list(ways)
    first = number % len(names)
    image, asked = conversation(number)
    return {name: answers(*ways[name], image=image, asked=asked) for name in names[first:] + names[:first]}


def answers(session: Session, draft_max: int, *, image: Image.Image, asked: Sequence[str]) -> list[Said]:
    """Have a conversation about an image. At most ``draft_max`` tokens are guessed at a time."""
    session.reset()
    found = []
    for turn, question in enumerate(asked):
        for _ in session.chat(question, image=None if turn else image, draft_max=draft_max):
            pass
        timings = session.last.timings
        found.append(Said(session.last.ids, timings.drafted, timings.accepted, timings.eval.ms, timings.eval.count))
    return found


def figures(said: Sequence[Mapping[str, Sequence[Said]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the figures of all scenes' answers, by way and kind of answer.

    ``ms`` is the time of a token. ``times`` says how many times as fast as without guesses it is, with ``low`` and
    ``high``: the 95 % interval, if the scenes are a sample.
    """
    return {way: {kind: _row(said, way=way, turns=turns) for kind, turns in KINDS.items()} for way in said[0]}


def _row(said: Sequence[Mapping[str, Sequence[Said]]], *, way: str, turns: slice) -> dict[str, Any]:
    """Return the figures of some turns in a way."""
    pairs = [(scene[PLAIN][turns], scene[way][turns]) for scene in said]
    found = [each for _, guessed in pairs for each in guessed]
    times = intervals.ratio("times", [(_ms(plain), _ms(guessed)) for plain, guessed in pairs])
    return {
        "answers": len(found),
        "tokens": sum(len(each.ids) for each in found),
        "drafted": sum(each.drafted for each in found),
        "accepted": sum(each.accepted for each in found),
        "differ": sum(a.ids != b.ids for plain, guessed in pairs for a, b in zip(plain, guessed, strict=True)),
        "ms": _ms(found) / sum(each.evals for each in found),
        "times": times.value,
        "low": times.low,
        "high": times.high,
    }


def _ms(said: Sequence[Said]) -> float:
    return sum(each.ms for each in said)


def figures_table(kind: str, ways: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """Return a table of the figures of a kind of answer, with a line for each way."""
    table = plain_table(kind, *COLUMNS, right=COLUMNS)
    for way, rows in ways.items():
        table.add_row(way, *cells(rows[kind]))
    return table


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return figures as text, in the order of ``COLUMNS``. Without guesses there is nothing to compare."""
    tokens, ms = str(row["tokens"]), f"{row['ms']:.3f}"
    if not row["drafted"]:
        return tokens, "", "", ms, "1"
    spread = "" if row["low"] is None else f" ({row['low']:.2f}-{row['high']:.2f})"
    times = f"{row['times']:.2f}{spread}"
    return tokens, f"{row['accepted']} of {row['drafted']}", f"{row['differ']} of {row['answers']}", ms, times


if __name__ == "__main__":
    main()
