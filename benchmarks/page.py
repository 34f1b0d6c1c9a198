"""Measures what docs/BENCHMARKS.md says, and writes it, with its plots: an hour, 24 GB of memory and 60 GB of disk.

    python -m benchmarks.page --work-dir /tmp/benchmarks
    python -m benchmarks.page --work-dir /tmp/benchmarks --only speed profile

Checkpoints of full size with random weights are made first (`make_checkpoint.py`); they and what is exported of them
stay in the work folder. Every part is a command anybody can run, named beside its numbers. With --only the others'
numbers stay as they are. Whatever is measured again is compared with the time before, and the page says how far apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from gguf import GGUFReader
from rich.console import Console

from llava_export.benchmark.ladders import Ladder, Rung
from llava_export.benchmark.llama_cpp import build_name
from llava_export.benchmark.profile import TOP, CallProfile, short
from llava_export.benchmark.rounds import DEFAULT_PROMPT_TOKENS, Figure, Results, machine, unit
from llava_export.benchmark.show import ladder_rows, with_spread
from llava_export.pte.read.program import read_pte
from llava_runner.contract import TEXT_DECODER

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "BENCHMARKS.md"
FOLDER = ROOT / "docs" / "benchmarks"  # plots, and results.json
RESULTS = FOLDER / "results.json"
MODELS = ("llava-1.5-7b", "mobilevlm-1.7b")
PARTS = ("export", "speed", "profile", "ladders")
TOTAL = re.compile(r"^total +([\d.]+) s +([\d.]+) GiB", re.MULTILINE)
STRAIGHTFORWARD = re.compile(r"^write +done after +(\d+) s +peak ([\d.]+) GiB", re.MULTILINE)
PEER = "llama.cpp"
IN_ROUNDS = ("speed", "memory")  # parts whose figures are medians

TEXT = """# Benchmarks

`python -m benchmarks.page --work-dir DIR` measures all of this and writes this page. The checkpoints have the
published sizes and random weights (`benchmarks/make_checkpoint.py`): speed does not depend on what the
weights say. The commands are to be run in DIR.

- $processor ($extensions), $memory; $system
- ExecuTorch $executorch; $peer
- A figure is a median over rounds, each a process of its own, in turn with what it is compared with; ± is how far the
  farthest round lay from it. $again

## Export

With the golden record, for which the float model is asked in a process beside; its memory is counted. The
straightforward pipeline puts every layer through ExecuTorch's compiler, and makes no golden record.

$export
## On the device, and beside llama.cpp

`cpp` is `llava_main`'s code, timed by `llava_bench`, with the weights packed in a file by an earlier start; `python` is
`llava-run`'s. llama.cpp has the same model as `q4_0`, its vision tower as `f16`. The first token comes after image and
prompt; loading is not part of it. The last row is memory that is no file's content, so that the system cannot drop it,
as it was when the round ended. The last column says how many times better `cpp` is than llama.cpp, round by round, with
the lowest and the highest.

$speed
## Where the time goes

By ExecuTorch's event tracer, in the C++ runner; tracing costs a little itself. In italics: outside XNNPACK's
delegates.

$profile
## The published ladders

One checkpoint exported and run with one thing changed at a time. What was published are LLaVA-1.5-7B's figures on a
OnePlus 12, another processor and another time: what compares is the direction.

$ladders
Two steps bring nothing here, or nothing that could be told from noise. A token's time goes to linears and attention, as
the profile above shows, and those are the same with one partitioner; what the second one takes over is felt in the
prompt, where the operators between the linears have hundreds of rows to work on. And the embedding's table lies in the
program's file, which is mapped: only the rows of tokens that occur are ever in memory, whatever their type. Eight bits
make the program smaller instead (`llava inspect` shows that part).

## Published, on phones

For context, not measured here: LLaVA-1.5-7B by ExecuTorch on a OnePlus 12, prefill in 14.60 s with Arm's i8mm kernels,
8.92 tokens decoded a second, about 5 GiB; MobileVLM-1.7B by llama.cpp (q4_k, 4 threads) on a Snapdragon 888, image
21.1 s, prefill 19.7 and decoding 14.1 tokens a second.
"""


class Desk:
    """Runs the commands in the work folder, so that the page can show them as they were."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *command: str) -> str:
        self.console.print(f"$ {' '.join(command)}", highlight=False, soft_wrap=True)
        name, *arguments = command
        installed = Path(sys.executable).with_name(name)  # python, llava
        program = installed if installed.exists() else ROOT / name
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # for python -m benchmarks...
        done = subprocess.run(
            [program, *arguments], cwd=self.folder, stdout=subprocess.PIPE, text=True, env=environment
        )
        if done.returncode:
            sys.exit(done.stdout[-2000:])
        return done.stdout

    def measure(self, name: str, *command: str) -> dict[str, Any]:
        """The JSON of a benchmark command; its plot goes to the page."""
        self.run(*command, "--json", f"{name}.json", "--plot", str(FOLDER / f"{name}.png"))
        found = json.loads((self.folder / f"{name}.json").read_text())
        return {"command": " ".join(command), **found}


def measure_export(desk: Desk, model: str) -> dict[str, Any]:
    ours = (
        "python",
        "-m",
        "llava_export.cli.export",
        "--model",
        model,
        "--output-dir",
        f"{model}-pte",
        "--with-artifacts",
    )
    plain = ("python", "-m", "benchmarks.straightforward", "--model", model, "--out", "straightforward.pte")
    gguf = ("llava", "gguf", "--model", model, "--output-dir", f"{model}-gguf", "--quantization", "q4_0")
    found = {}
    for name, command, pattern in (("llava_export", ours, TOTAL), ("straightforward", plain, STRAIGHTFORWARD)):
        seconds, peak = pattern.findall(desk.run(*command))[-1]
        found[name] = {"command": " ".join(command), "seconds": float(seconds), "peak": float(peak)}
    desk.run(*gguf)
    sizes = {
        "llava.pte": desk.folder / f"{model}-pte" / "llava.pte",
        "ggml-model-q4_0.gguf": desk.folder / f"{model}-gguf" / "ggml-model-q4_0.gguf",
        "mmproj-model-f16.gguf": desk.folder / f"{model}-gguf" / "mmproj-model-f16.gguf",
    }
    found["bytes"] = {name: path.stat().st_size for name, path in sizes.items()}
    found["bytes_per_token"] = bytes_per_token(sizes["llava.pte"], sizes["ggml-model-q4_0.gguf"])
    (desk.folder / "straightforward.pte").unlink()
    return found


def bytes_per_token(program: Path, gguf: Path) -> dict[str, float]:
    """What decoding a token behind the usual prompt reads of weights and cache; llama.cpp's cache is float16."""
    read = read_pte(program)
    (decoder,) = (method for method in read.methods if method.name == TEXT_DECODER)
    context = decoder.kv_cache[0].sizes[1]
    cache = sum(tensor.bytes for tensor in decoder.kv_cache) * DEFAULT_PROMPT_TOKENS / context
    weights = sum(part.bytes for part in read.parts if TEXT_DECODER in part.methods)
    theirs = sum(int(tensor.n_bytes) for tensor in GGUFReader(gguf).tensors if tensor.name != "token_embd.weight")
    return {"llava_export": weights + cache, PEER: theirs + cache}


def measure_speed(desk: Desk, model: str) -> dict[str, Any]:
    files = (f"{model}-gguf/ggml-model-q4_0.gguf", "--mmproj", f"{model}-gguf/mmproj-model-f16.gguf")
    command = ("llava", "benchmark", f"{model}-pte", "--runner", "cpp", "python")
    return desk.measure(f"speed-{model}", *command, "--peer", PEER, "--gguf", *files, "--runs", "5")


def measure_profile(desk: Desk, model: str) -> dict[str, Any]:
    return desk.measure(f"profile-{model}", "llava", "benchmark", f"{model}-pte", "--profile")


def measure_ladders(desk: Desk, model: str) -> dict[str, Any]:
    command = ("llava", "benchmark", "--ablation", "--model", model, "--runs", "2")
    return desk.measure(f"ladders-{model}", *command)


MEASURES = {
    "export": measure_export,
    "speed": measure_speed,
    "profile": measure_profile,
    "ladders": measure_ladders,
}
LADDER_MODELS = MODELS[:1]  # the one that the published ladders are about


def figures(results: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Every time, speed and size of the page that was measured, by name."""
    for model, found in results.get("export", {}).items():
        for pipeline in ("llava_export", "straightforward"):
            for what in ("seconds", "peak"):
                yield f"export, {model}, {pipeline}, {what}", Figure.of([found[pipeline][what]])
    named = [("speed", model, found) for model, found in results.get("speed", {}).items()]
    for model, found in results.get("ladders", {}).items():
        named += [(f"{ladder['name']} ladder", model, ladder) for ladder in found["ladders"]]
    for part, model, found in named:
        for contender, rounds in found["rounds"].items():
            for name in rounds[0]:
                yield f"{part}, {model}, {contender}, {name}", Figure.of([values[name] for values in rounds])


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of what both have: new median over old one, and whether the ranges of their rounds overlap."""
    old = dict(figures(before))
    return {
        name: {
            "ratio": new.median / old[name].median,
            "overlap": new.low <= old[name].high and old[name].low <= new.high if name.startswith(IN_ROUNDS) else None,
        }
        for name, new in figures(after)
        if name in old
    }


def render(results: Mapping[str, Any]) -> str:
    """The page, of nothing but the results."""
    return Template(TEXT).substitute(
        **results["machine"],
        peer=results["peer"],
        again=again(results.get("again", {})),
        export=export_tables(results["export"]),
        speed=speed_tables(results["speed"], results["export"], results["profile"]),
        profile=profile_tables(results["profile"]),
        ladders=ladder_tables(results["ladders"]),
    )


def again(found: Mapping[str, Mapping[str, Any]]) -> str:
    if not found:
        return "Measured once."
    apart = sorted((abs(each["ratio"] - 1), name) for name, each in found.items())
    in_rounds = [each["overlap"] for each in found.values() if each["overlap"] is not None]
    half, most = apart[len(apart) // 2][0], apart[len(apart) * 9 // 10][0]
    return (
        f"{len(apart)} of these figures were measured a second time, at another hour: half of them differed by less "
        f"than {half:.0%}, nine in ten by less than {most:.0%}, the farthest ({apart[-1][1]}) by {apart[-1][0]:.0%}. "
        f"The rounds of both times overlap for {sum(in_rounds)} of {len(in_rounds)}."
    )


def export_tables(export: Mapping[str, Any]) -> str:
    rows = []
    for model, found in export.items():
        ours, plain = found["llava_export"], found["straightforward"]
        rows.append((model, "`llava_export`", f"{ours['seconds']:.0f} s", f"{ours['peak']:.2f} GiB"))
        rows.append(("", "straightforward", f"{plain['seconds']:.0f} s", f"{plain['peak']:.2f} GiB"))
        faster, smaller = plain["seconds"] / ours["seconds"], plain["peak"] / ours["peak"]
        rows.append(("", "better", f"**{faster:.1f}** times", f"**{smaller:.1f}** times"))
    sizes = [(model, *(f"{size / 1e9:.2f} GB" for size in found["bytes"].values())) for model, found in export.items()]
    names = [f"`{name}`" for name in next(iter(export.values()))["bytes"]]
    pipelines = ("llava_export", "straightforward")
    return "\n".join(
        [
            table(("", "", "time", "peak memory"), rows),
            commands(found[name]["command"] for found in export.values() for name in pipelines),
            table(("size", *names), sizes),
        ]
    )


def speed_tables(speed: Mapping[str, Any], export: Mapping[str, Any], profile: Mapping[str, Any]) -> str:
    sections = []
    for model, found in speed.items():
        work, rounds = found["work"], found["rounds"]
        results = Results(work, rounds)
        rows = []
        for name in results.names():
            ratio = results.ratio("cpp", PEER, name)
            cells = [with_spread(results.figure(contender, name)) for contender in rounds]
            better = f"**{ratio.median:.2f}** ({ratio.low:.2f} to {ratio.high:.2f})"
            rows.append((f"{name}, {unit(name)}", *cells, better))
        sections += [
            f"### {model}\n",
            f"{work['prompt_tokens']} positions of prompt, {work['decode_tokens']} tokens decoded at each depth, "
            f"{work['threads']} threads, {len(rounds['cpp'])} rounds.\n",
            table(("", *rounds, "better"), rows),
            commands([found["command"]]),
            bound_by_memory(export[model]["bytes_per_token"], profile[model]["profiles"][-1]),
            f"![stages, and decoding against depth](benchmarks/speed-{model}.png)\n",
        ]
    return "\n".join(sections)


def bound_by_memory(read: Mapping[str, float], token: Mapping[str, Any]) -> str:
    """How far decoding can be ahead of llama.cpp's, by what both read and where our time goes."""
    spent = {**token["delegated"], **token["outside"]}
    reading = sum(value for name, value in spent.items() if name.startswith(("Fully Connected", "llama.custom_sdpa")))
    ours, theirs = read["llava_export"], read[PEER]
    share, rate = reading / token["total"], ours / 1e6 / token["total"]
    return (
        f"Decoding is bound by memory: a token at depth {DEFAULT_PROMPT_TOKENS} reads {ours / 1e9:.2f} GB of weights "
        f"and cache here, in linears and attention, which by the profile below take {share:.0%} of its time, "
        f"{rate:.0f} GB/s. llama.cpp reads {theirs / 1e9:.2f} GB. At the same bandwidth that makes us "
        f"**{theirs / ours:.2f}** times as fast; what is beyond is better use of it.\n"
    )


def profile_tables(profile: Mapping[str, Any]) -> str:
    sections = []
    for model, found in profile.items():
        columns = []
        for call in found["profiles"]:
            if call["delegated"]:
                shares = [
                    f"{short(name) if name in call['delegated'] else f'*{short(name)}*'} {spent / call['total']:.1%}"
                    for name, spent in profiled(call).parts()[:TOP]
                ]
                inside = f"{call['delegates'] / call['total']:.0%} in delegates"
                columns.append([call["name"], f"**{call['total']:.0f} ms**, {inside}", *shares])
        header, *rows = zip(*columns, strict=True)
        sections += [
            f"### {model}\n",
            table(header, rows),
            commands([found["command"]]),
            f"![operators](benchmarks/profile-{model}.png)\n",
        ]
    return "\n".join(sections)


def ladder_tables(ladders: Mapping[str, Any]) -> str:
    sections = []
    for model, found in ladders.items():
        for written in found["ladders"]:
            rungs = tuple(Rung(**rung) for rung in written["rungs"])
            ladder = Ladder(written["name"], tuple(written["compared"]), rungs)
            results = Results(written["work"], written["rounds"])
            rows = [
                (f"{name}, {unit(name)}: {rung}", *cells)
                for name in ladder.compared
                for rung, *cells in ladder_rows(ladder, results, name)
            ]
            sections += [
                f"### {ladder.name.capitalize()}, {model}\n",
                table(("", "measured", "change", "published", "change"), rows),
            ]
        sections += [commands([found["command"]]), f"![both ladders](benchmarks/ladders-{model}.png)\n"]
    return "\n".join(sections)


def profiled(call: Mapping[str, Any]) -> CallProfile:
    return CallProfile(call["name"], call["total"], call["delegated"], call["outside"], call["delegates"], {})


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def commands(each: Iterable[str]) -> str:
    return "\n".join(["```console", *(f"$ {command}" for command in each), "```\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="checkpoints, packages and raw numbers")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts alone")
    arguments = parser.parse_args()
    console = Console()
    desk = Desk(arguments.work_dir.resolve(), console)
    FOLDER.mkdir(parents=True, exist_ok=True)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results: dict[str, Any] = {part: before[part] for part in PARTS if part in before}
    desk.run("runner/build.sh", "native")
    for model in MODELS:
        if not (desk.folder / model / "config.json").exists():
            desk.run("python", "-m", "benchmarks.make_checkpoint", "--like", model, "--out", model)
    for part in [part for part in PARTS if part in arguments.only]:
        models = LADDER_MODELS if part == "ladders" else MODELS
        results[part] = {model: MEASURES[part](desk, model) for model in models}
        results["machine"], results["peer"] = machine(), build_name()
        results["again"] = before.get("again", {}) | differences(before, {part: results[part]})
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for name, each in results["again"].items():
        console.print(f"{each['ratio']:6.2f} times the first time: {name}", highlight=False)
    if missing := [part for part in PARTS if part not in results]:
        sys.exit(f"the page waits for {', '.join(missing)}: measure them, too")
    PAGE.write_text(render(results))


if __name__ == "__main__":
    main()
