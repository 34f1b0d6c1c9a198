"""Times the C++ runner against the Python runner: the same package, picture and question, in turn, on all processors.

The prompt is a picture and a question, some 640 positions with LLaVA-1.5; decoding happens behind them. What memory
bandwidth would allow for decoding is printed too: the decoder's weights and the cache, read once for each token.

    python tools/bench_runners.py package/llava.pte --model CHECKPOINT --runs 5
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.export import silence_libraries
from llava_export.recipe import Recipe
from llava_runner.contract import Manifest, manifest_path

LINE = re.compile(r"llava_print_timings:\s+(.+?) time =\s+([\d.]+) ms(?: /\s+(\d+))?")
PEAK = re.compile(r"peak memory =\s+([\d.]+) MiB")
QUESTION = "What is in the image?"
BANDWIDTH_BYTES = 1 << 31


def run(command: list[str]) -> dict[str, float]:
    """Milliseconds of each stage of one run, tokens under ``... tokens``, and peak memory in MiB."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    values = {"peak": float(PEAK.search(done.stderr)[1])}  # type: ignore[index]
    for name, milliseconds, tokens in LINE.findall(done.stderr):
        values[name] = float(milliseconds)
        if tokens:
            values[f"{name} tokens"] = float(tokens)
    return values


def read_bandwidth() -> float:
    """Bytes a second that all processors together read from memory: the best of several passes over 2 GiB."""
    numbers = torch.ones(BANDWIDTH_BYTES // 4)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return BANDWIDTH_BYTES / min(seconds)


def bytes_per_token(model: str, recipe: Recipe, *, depth: float) -> float:
    """What decoding one token reads: all weights of the decoder, and the cache up to ``depth``."""
    checkpoint = open_checkpoint(model)
    stored = recipe.stored_bytes(checkpoint.build_model(max_context_len=1))
    weights = sum(size for name, size in stored.items() if name.startswith("text_decoder."))
    return weights + recipe.cache_bytes(checkpoint.config.text) * depth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="with image.png and tokenizer.bin beside it")
    parser.add_argument("--model", required=True, help="the checkpoint it was made of: its sizes are read")
    parser.add_argument("--runs", type=int, default=5, help="of each runner (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of the answer (default: %(default)s)")
    parser.add_argument("--llava-main", type=Path, default=Path("cmake-out/native/llava_main"))
    args = parser.parse_args()
    silence_libraries()

    program = args.program
    files = [f"--model_path={program}", f"--image_path={program.parent / 'image.png'}", f"--prompt={QUESTION}"]
    flags = [*files, "--temperature=0", f"--max_new_tokens={args.tokens}"]
    commands = {
        "python": [str(Path(sys.executable).with_name("llava-run")), *flags],
        "c++, nothing packed": [str(args.llava_main), *flags, "--packed_cache_path=off"],
        "c++": [str(args.llava_main), *flags],
    }
    run(commands["c++"])  # packs the weights
    results: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(args.runs):
        for name, command in commands.items():
            results[name].append(run(command))

    prompt = results["c++"][0]["prompt eval tokens"]
    recipe = Recipe(**Manifest.from_json(manifest_path(program).read_text()).card.recipe)
    read = bytes_per_token(args.model, recipe, depth=prompt + args.tokens / 2)
    bandwidth = read_bandwidth()
    console = Console(highlight=False)
    console.print(
        f"{program}: {prompt:.0f} positions, then {args.tokens} tokens; {os.cpu_count()} threads, "
        f"medians of {args.runs} runs in turn (spread)"
    )
    table = Table("runner", box=None, pad_edge=False, header_style="dim")
    for column in ("load", "image", "prefill", "decode", "first token", "peak"):
        table.add_column(column, justify="right")
    medians = {}
    for name, runs in results.items():
        rates = {
            stage: [values[f"{stage} tokens"] / values[stage] * 1000 for values in runs]
            for stage in ("prompt eval", "eval")
        }
        medians[name] = {stage: statistics.median(values) for stage, values in rates.items()}
        first = [values["load"] + values["image eval"] + values["prompt eval"] for values in runs]
        table.add_row(
            name,
            f"{statistics.median(values['load'] for values in runs) / 1000:.2f} s",
            f"{statistics.median(values['image eval'] for values in runs) / 1000:.2f} s",
            *(f"{medians[name][stage]:.1f} tok/s ({min(r):.1f}-{max(r):.1f})" for stage, r in rates.items()),
            f"{statistics.median(first) / 1000:.1f} s",
            f"{statistics.median(values['peak'] for values in runs) / 1024:.2f} GiB",
        )
    console.print(table)
    fast, slow = medians["c++"], medians["python"]
    console.print(
        f"c++ against python: prefill {fast['prompt eval'] / slow['prompt eval']:.2f} times, "
        f"decode {fast['eval'] / slow['eval']:.2f} times"
    )
    console.print(
        f"bandwidth: {bandwidth / 1e9:.1f} GB/s read {read / 1e9:.2f} GB {bandwidth / read:.1f} times a second; "
        f"c++ decodes at {fast['eval'] / (bandwidth / read):.0%} of that"
    )


if __name__ == "__main__":
    main()
