"""The small table of figures in README.md, made of the results of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring import PEER, STRAIGHTFORWARD_MODELS
from benchmarks.page_tables import table
from llava_export.benchmark.rounds import Results, unit
from llava_export.benchmark.show import three_digits
from llava_runner.errors import UserError

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
# The program holds language model, vision tower and projector, and llama.cpp has them in these two files.
GGUF_FILES = ("ggml-model-q4_0.gguf", "mmproj-model-f16.gguf")
PIPELINE = "straightforward pipeline"


def readme_table(results: Mapping[str, Any]) -> str:
    """Return a table of our figures next to those of the straightforward pipeline and of llama.cpp."""
    columns = [list(_cells(results, model)) for model in STRAIGHTFORWARD_MODELS]
    header = ["", "compared with", *(name for model in STRAIGHTFORWARD_MODELS for name in (model, "theirs"))]
    depth = results["speed"][STRAIGHTFORWARD_MODELS[0]]["work"]["depths"][-1]
    labels = (
        ("export, time", PIPELINE),
        ("export, peak memory", PIPELINE),
        ("size of the program", f"{PEER}, `q4_0` and `f16`"),
        ("`llava_main`, image and prompt to the first token", PEER),
        (f"`llava_main`, decoding after {depth} positions", PEER),
        ("`llava_main`, peak memory", PEER),
    )
    rows = [
        [label, peer, *(cell for pair in pairs for cell in pair)]
        for (label, peer), *pairs in zip(labels, *columns, strict=True)
    ]
    return table(header, rows, left=2)


def _cells(results: Mapping[str, Any], model: str) -> Iterator[tuple[str, str]]:
    """Yield our figure and the other one for each row of a model."""
    export, speed = results["export"][model], results["speed"][model]
    ours, plain = export["llava_export"], export["straightforward"]
    yield f"{ours['seconds']:.0f} s", f"{plain['seconds']:.0f} s"
    yield f"{ours['peak']:.2f} GiB", f"{plain['peak']:.2f} GiB"
    gguf = sum(export["bytes"][name] for name in GGUF_FILES)
    yield f"{export['bytes']['llava.pte'] / 1e9:.2f} GB", f"{gguf / 1e9:.2f} GB"
    rounds = Results(speed["work"], speed["rounds"])
    for name in ("first token", f"decode at {speed['work']['depths'][-1]}", "peak memory"):
        here, peer = (rounds.figure(contender, name).median for contender in ("cpp", PEER))
        yield f"{three_digits(here)} {unit(name)}", f"{three_digits(peer)} {unit(name)}"


def with_table(text: str, results: Mapping[str, Any]) -> str:
    """Return a README with the table of the results between its markers. Raises ``UserError`` if one is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"the README must have the lines {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{readme_table(results)}{END}{after}"


def update_readme(path: Path, results: Mapping[str, Any]) -> None:
    """Replace what is between the markers of a README. Raises ``UserError`` if a marker is missing."""
    path.write_text(with_table(path.read_text(encoding="utf-8"), results), encoding="utf-8")
