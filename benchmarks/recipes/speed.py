"""Times the decoding of recipes, from programs exported for it, side by side in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import WorkFolder
from benchmarks.recipes.entries import Entry
from llava_export.benchmark.rounds import Work, cpp_runner, machine, take_turns
from llava_export.builtin import SAMPLE_IMAGE
from llava_export.cli.terminal import new_console
from llava_runner.contract import Manifest, manifest_path

PROGRAM = "llava.pte"
PROMPT_TOKENS, DECODE_TOKENS = 64, 64
DEPTHS = (0, 512)


def export_all(entries: Sequence[Entry], folder: Path) -> dict[str, Path]:
    """Export the checkpoint in a folder with the recipe of each entry, unless that is there. Return the programs."""
    programs = {}
    work = WorkFolder(folder, plots=folder, console=new_console())
    for entry in entries:
        program = work.path / "packages" / entry.name / PROGRAM
        if not program.exists():
            command = ("llava", "export", "--model", "checkpoint", "--output-dir", f"packages/{entry.name}")
            work.run(*command, "--no-golden", *entry.flags.split())
        programs[entry.name] = program
    return programs


def time_all(programs: dict[str, Path], *, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the C++ runner with each program in turn. Return the rounds with the machine and the recipes, as JSON."""
    contenders = [cpp_runner(program, name=name) for name, program in programs.items()]
    manifests = {name: Manifest.from_json(manifest_path(program).read_text()) for name, program in programs.items()}
    work = Work.fitting(
        max_seq_len=PROMPT_TOKENS,
        max_context_len=max(DEPTHS) + DECODE_TOKENS,
        image=SAMPLE_IMAGE,
        prompt_tokens=PROMPT_TOKENS,
        decode_tokens=DECODE_TOKENS,
        depths=DEPTHS,
    )
    results = take_turns(contenders, work, runs=rounds, on_round=say)
    return {
        "machine": machine(),
        "recipes": {name: manifest.card.recipe for name, manifest in manifests.items()},
        **results.to_dict(),
    }
