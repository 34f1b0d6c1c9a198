"""The section of docs/BENCHMARKS.md about guessed tokens where the answers are real: scenes and the built-in models."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Any

from benchmarks.drafts_on_scenes import COLUMNS, cells
from benchmarks.page_tables import console, table

TEXT = """## On scenes

The built-in models answer questions about scenes, and the answers are real. A conversation has three turns: what is in
the image, another question, and again what is in it, in other words. The first two answers are "first answers", the
third is a "repeated answer". Each conversation is had once in each way, and the ways take turns.

- "guesses right" says how many of the guessed tokens came, and "differ" how many answers are others than without
  guesses.
- "times plain" says how many times as fast as without guesses a token is decoded, making guesses included, with the
  95 % interval over scenes.
- The draft model was trained on the text of such conversations, without images. It knows how answers are worded, and
  not what is in the image.

No model that drafts pays for models as small as these. They fit into the processor's cache, so memory does not limit
them, and a call with two rows takes nearly twice as long as one with one. A token of the draft takes a 30th of the
multiplications, but no 30th of the time: what surrounds a call takes as long in both. What a right guess saves in a
model of full size, [the section above](#guessed-tokens) tells.
"""


def scenes_section(scenes: Mapping[str, Any]) -> str:
    """Return the section: a table of the figures of each model, and the commands."""
    sections = [TEXT, console(dict.fromkeys(command for found in scenes.values() for command in found["made"]))]
    for model, found in scenes.items():
        engines = found["engines"]
        here = next(iter(engines.values()))["machine"]
        sections += [
            f"### {model}\n",
            Template("$processor ($extensions)\n").substitute(here),
            scenes_table(engines),
            console(each["command"] for each in engines.values()),
        ]
    return "\n".join(sections)


def scenes_table(engines: Mapping[str, Any]) -> str:
    """Return the figures of each engine, by kind of answer and way to guess."""
    rows: list[tuple[str, ...]] = []
    for engine, found in engines.items():
        for kind in next(iter(found["ways"].values())):
            name = f"{engine}, {found['scenes']} scenes, {kind}"
            for way, by_kind in found["ways"].items():
                rows.append((name, way, *cells(by_kind[kind])))
                name = ""
    return table(("", "", *COLUMNS), rows, left=2)
