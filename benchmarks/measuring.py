"""The commands that measure the figures of docs/BENCHMARKS.md, run in a work folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gguf import GGUFReader
from rich.console import Console

from llava_export.benchmark.rounds import machine
from llava_export.builtin import CHECKPOINTS
from llava_export.pte.read.describe import card_of
from llava_export.pte.read.program import read_pte
from llava_export.recipe import recipe_text
from llava_runner.bench import DEFAULT_PROMPT_TOKENS
from llava_runner.contract import TEXT_DECODER
from llava_runner.engine_library import ENGINES
from llava_runner.errors import UserError

ROOT = Path(__file__).parents[1]
MODELS = ("llava-1.5-7b", "mobilevlm-1.7b", "llava-interleave-qwen-0.5b", "llava-llama-3-8b")
STRAIGHTFORWARD_MODELS = MODELS[:2]  # exported in the straightforward way, too, and in README.md
DRAFT_MODELS = MODELS[:2]  # decoded with guessed tokens
SCENE_MODELS = tuple(CHECKPOINTS)  # built in; they know the scenes
ALL_MODELS = (*MODELS, *SCENE_MODELS)
LADDER_MODELS = MODELS[:1]  # the model that the published ladders are about
PEER = "llama.cpp"
READ_BYTES, READS = 2 * 2**30, 11  # to find out how fast memory is
TOTAL = re.compile(r"^total +([\d.]+) s +([\d.]+) GiB", re.MULTILINE)
STRAIGHTFORWARD = re.compile(r"^write +done after +(\d+) s +peak ([\d.]+) GiB", re.MULTILINE)


class WorkFolder:
    """The folder in which the commands run: what they write stays there, and the page shows them as they were typed.

    Plots go to the folder ``plots``.
    """

    def __init__(self, path: Path, *, plots: Path, console: Console) -> None:
        self.path, self.plots = path, plots
        self._console = console
        path.mkdir(parents=True, exist_ok=True)
        plots.mkdir(parents=True, exist_ok=True)

    def run(self, *command: str) -> str:
        """Run a command and return what it printed. Raises ``UserError`` if it fails.

        ``python`` and ``llava`` are those of this environment, and other commands those of the checkout. The checkout
        is on ``PYTHONPATH``, for ``python -m benchmarks...``.
        """
        self._console.print(f"$ {' '.join(command)}", soft_wrap=True)
        name, *arguments = command
        installed = Path(sys.executable).parent / name
        program = installed if installed.exists() else ROOT / name
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "runner")))}
        done = subprocess.run([program, *arguments], cwd=self.path, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            print(done.stdout[-2000:])
            raise UserError(f"{' '.join(command)} ended with exit code {done.returncode}")
        return done.stdout

    def measure(self, name: str, *command: str) -> dict[str, Any]:
        """Run a command of ``llava benchmark``. Return the command with its JSON, and keep its plot."""
        self.run(*command, "--json", f"{name}.json", "--plot", str(self.plots / f"{name}.png"))
        found = json.loads((self.path / f"{name}.json").read_text())
        return {"command": " ".join(command), **found}


def prepare(work: WorkFolder, models: Iterable[str]) -> None:
    """Build the C++ runner, and make the checkpoints that are not there yet."""
    work.run("runner/build.sh", "native")
    for model in models:
        if model not in CHECKPOINTS and not (work.path / model / "config.json").exists():
            work.run("python", "-m", "benchmarks.make_checkpoint", "--like", model, "--out", model)


def measure_export(work: WorkFolder, model: str) -> dict[str, Any]:
    """Export a checkpoint, some also the straightforward way. Return seconds, peaks in GiB, sizes in bytes."""
    ours = ("llava", "export", "--model", model, "--output-dir", f"{model}-pte", "--with-artifacts")
    plain = ("python", "-m", "benchmarks.straightforward", "--model", model, "--out", "straightforward.pte")
    gguf = ("llava", "gguf", "--model", model, "--output-dir", f"{model}-gguf", "--quantization", "q4_0")
    found: dict[str, Any] = {"machine": machine()}
    pipelines = (("llava_export", ours, TOTAL), ("straightforward", plain, STRAIGHTFORWARD))
    for name, command, pattern in pipelines[: 1 + (model in STRAIGHTFORWARD_MODELS)]:
        seconds, peak = pattern.findall(work.run(*command))[-1]
        found[name] = {"command": " ".join(command), "seconds": float(seconds), "peak": float(peak)}
    work.run(*gguf)
    sizes = {
        "llava.pte": work.path / f"{model}-pte" / "llava.pte",
        "ggml-model-q4_0.gguf": work.path / f"{model}-gguf" / "ggml-model-q4_0.gguf",
        "mmproj-model-f16.gguf": work.path / f"{model}-gguf" / "mmproj-model-f16.gguf",
    }
    found["bytes"] = {name: path.stat().st_size for name, path in sizes.items()}
    card = card_of(read_pte(sizes["llava.pte"]))
    assert card is not None
    found["recipe"] = recipe_text(card.recipe)
    found["bytes_per_token"] = bytes_per_token(sizes["llava.pte"], sizes["ggml-model-q4_0.gguf"])
    (work.path / "straightforward.pte").unlink(missing_ok=True)
    return found


def bytes_per_token(program: Path, gguf: Path) -> dict[str, float]:
    """Return how many bytes of weights and cache both runners read to decode a token after the usual prompt.

    llama.cpp's cache is float16, so it is as large as ours.
    """
    read = read_pte(program)
    (decoder,) = (method for method in read.methods if method.name == TEXT_DECODER)
    context = decoder.kv_cache[0].sizes[1]
    cache = sum(tensor.bytes for tensor in decoder.kv_cache) * DEFAULT_PROMPT_TOKENS / context
    weights = sum(part.bytes for part in read.parts if TEXT_DECODER in part.methods)
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(gguf).tensors}
    # A tied head is the table of the embedding, of which a token otherwise reads one row.
    theirs = sum(tensors.values()) - (tensors["token_embd.weight"] if "output.weight" in tensors else 0)
    return {"llava_export": weights + cache, PEER: theirs + cache}


def measure_speed(work: WorkFolder, model: str) -> dict[str, Any]:
    """Run both runners and llama.cpp in turn."""
    command = ("llava", "benchmark", f"{model}-pte", "--runner", "cpp", "python", *peer_flags(model))
    found = work.measure(f"speed-{model}", *command, "--runs", "3")
    return {**found, "memory_rate": memory_rate(found["work"]["threads"])}


def memory_rate(threads: int) -> float:
    """Return how many bytes a second so many threads read of memory, where they do nothing but add them up."""
    torch.set_num_threads(threads)
    values = torch.ones(READ_BYTES // 4)
    seconds = []
    for _ in range(READS):
        started = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - started)
    return READ_BYTES / median(seconds)


def measure_profile(work: WorkFolder, model: str) -> dict[str, Any]:
    """Trace every operator in the C++ runner."""
    return work.measure(f"profile-{model}", "llava", "benchmark", f"{model}-pte", "--profile")


def measure_ladders(work: WorkFolder, model: str) -> dict[str, Any]:
    """Export and run the rungs of both published ladders."""
    return work.measure(f"ladders-{model}", "llava", "benchmark", "--ablation", "--model", model, "--runs", "2")


def measure_draft(work: WorkFolder, model: str) -> dict[str, Any]:
    """Time calls of several rows, and decoding with guessed tokens, in the C++ runner, in turn with llama.cpp."""
    command = ("llava", "benchmark", f"{model}-pte", "--draft", *peer_flags(model))
    return work.measure(f"draft-{model}", *command, "--runs", "3")


def peer_flags(model: str) -> tuple[str, ...]:
    """Return the flags of ``llava benchmark`` that name the peer and its files."""
    gguf, mmproj = f"{model}-gguf/ggml-model-q4_0.gguf", f"{model}-gguf/mmproj-model-f16.gguf"
    return ("--peer", PEER, "--gguf", gguf, "--mmproj", mmproj)


def measure_scenes(work: WorkFolder, model: str) -> dict[str, Any]:
    """Ask a built-in model about scenes with each way to guess tokens. A draft for all of them is trained once."""
    checkpoint, draft, package = "scenes-draft", "scenes-draft-pte", f"{model}-pte"
    made = {
        checkpoint: ("python", "-m", "training.draft", "--output", checkpoint),
        draft: ("llava", "export", "--model", checkpoint, "--text-only", "--output-dir", draft),
        package: ("llava", "export", "--model", model, "--output-dir", package, "--with-artifacts"),
    }
    for folder, command in made.items():
        if folder == package or not (work.path / folder).exists():
            work.run(*command)
    ask = ("python", "-m", "benchmarks.drafts_on_scenes", package, "--draft-model-path", draft)
    engines = {}
    for engine in ENGINES:
        asked = (*ask, "--engine", engine)
        work.run(*asked, "--json", "scenes.json")
        engines[engine] = {"command": " ".join(asked), **json.loads((work.path / "scenes.json").read_text())}
    return {"made": [" ".join(command) for command in made.values()], "engines": engines}


# The parts of the page, in the order in which they are measured.
PARTS: dict[str, Callable[[WorkFolder, str], dict[str, Any]]] = {
    "export": measure_export,
    "speed": measure_speed,
    "draft": measure_draft,
    "scenes": measure_scenes,
    "profile": measure_profile,
    "ladders": measure_ladders,
}


def measure_part(part: str, work: WorkFolder, models: Iterable[str]) -> dict[str, Any]:
    """Measure a part of the page for those of the models that it is about. Return its results by model."""
    return {model: PARTS[part](work, model) for model in models if model in models_of(part)}


def models_of(part: str) -> tuple[str, ...]:
    """Return the models that a part of the page is about."""
    return {"ladders": LADDER_MODELS, "draft": DRAFT_MODELS, "scenes": SCENE_MODELS}.get(part, MODELS)
