"""``llava benchmark``: a package timed stage by stage, beside other runners."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llava_export.cli.flags import UsageError, existing_file, file_to_write, plot_file
from llava_runner.arguments import ArgumentParser, depths, path, positive_int, run_command, thread_count

if TYPE_CHECKING:
    from rich.console import Console

    from llava_export.benchmark.rounds import Contender, Work

RUNNERS = ("python", "cpp")
PEERS = ("llama.cpp",)
EPILOG = """examples:
  llava benchmark demo --runner python cpp --plot demo.png
  llava benchmark demo --profile
  llava benchmark demo --peer llama.cpp \\
      --gguf gguf/ggml-model-q4_0.gguf --mmproj gguf/mmproj-model-f16.gguf
  llava benchmark --ablation --model llava-hf/llava-1.5-7b-hf

Every round is a process of its own: load, an image, a prompt, decoding. The
figures are medians, with how far the farthest round lay from them.
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "llava benchmark") -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(prog), run, argv)


def build_parser(prog: str = "llava benchmark") -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog=prog,
        description="Time a package stage by stage, in turn with the runners it is compared with.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("package", nargs="?", type=path, metavar="PACKAGE", help="a .pte, or the folder of a package")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--profile", action="store_true", help="trace every operator, and show where the time goes")
    mode.add_argument("--draft", action="store_true", help="time what guessed tokens save, by how often they are right")
    mode.add_argument("--ablation", action="store_true", help="export --model with one thing changed at a time instead")
    add("--model", help="with --ablation: the checkpoint, as for llava export")
    add(
        "--runner",
        nargs="+",
        choices=RUNNERS,
        metavar="{python,cpp}",
        help="one or both (default: cpp where runner/build.sh has built it)",
    )
    add("--peer", choices=PEERS, help="also run a peer; needs --gguf, --mmproj and the extra llama")
    add("--gguf", type=existing_file, metavar="FILE", help="the same language model for llama.cpp")
    add("--mmproj", type=existing_file, metavar="FILE", help="the same vision tower and projector for llama.cpp")
    add(
        "--image",
        "--image-path",
        type=existing_file,
        metavar="PATH",
        help="an image (default: the package's image.png, or the sample)",
    )
    add("--prompt-tokens", type=positive_int, metavar="N", help="positions of prompt and image (default: 600 or more)")
    add("--decode-tokens", type=positive_int, metavar="N", help="tokens to decode at each depth (default: 32)")
    add("--depth", type=depths, metavar="N,N,...", help="positions in the cache before decoding (default: 0,600)")
    add(
        "--threads",
        "--cpu-threads",
        type=thread_count,
        metavar="N",
        help="threads of every runner (default: one a processor)",
    )
    add("--runs", type=positive_int, default=3, metavar="N", help="rounds of each runner that count (default: 3)")
    add("--json", type=file_to_write, metavar="FILE", help="also write machine, figures and every round")
    add("--plot", type=plot_file, metavar="FILE", help="also draw them: .png, .svg or .pdf; needs the extra benchmark")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Measure as the command line says. Raises a ``UserError`` for the user's mistakes."""
    check(arguments)
    from llava_export.benchmark import show
    from llava_export.benchmark.rounds import machine
    from llava_export.cli.terminal import new_console, silence_libraries

    silence_libraries()
    console = new_console()
    here = machine()
    if arguments.ablation:
        written = ablate(arguments, console)
    elif arguments.profile:
        written = profile_runner(arguments, console)
    elif arguments.draft:
        written = time_drafts(arguments, console)
    else:
        written = compare_runners(arguments, console)
    console.print(show.machine_lines(here), style="dim")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": here, **written}, indent=2) + "\n")


def compare_runners(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Time the runners in turn and print a table. Return what goes into the JSON file."""
    from llava_export.benchmark import plots, rounds, show
    from llava_export.cli.terminal import progress

    program, work = program_and_work(arguments)
    contenders = [runner(name, program) for name in arguments.runner or default_runner()]
    build, peer = peer_of(arguments, work)
    contenders += [peer] if peer else []
    with progress(console, steps=len(contenders) * (arguments.runs + 1)) as step:
        results = rounds.take_turns(contenders, work, runs=arguments.runs, on_round=step)
    title = f"{show.work_line(program.name, work)}, median of {arguments.runs}"
    console.print(title)
    console.print(show.results_table(results, peer="llama.cpp" if arguments.peer else None))
    if build:
        console.print(build, style="dim")
    if arguments.plot:
        plots.plot_results(results, arguments.plot, title=title)
    return {"program": program.name, "peer": build, **results.to_dict()}


def profile_runner(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Trace one runner and print a table for each kind of call. Return what goes into the JSON file."""
    from llava_export.benchmark import plots, profile, show
    from llava_export.cli.terminal import progress

    program, work = program_and_work(arguments)
    work = replace(work, depths=(work.prompt_tokens,))
    (name,) = arguments.runner or default_runner()
    with progress(console, steps=arguments.runs + 1) as step:
        profiles = profile.profile(runner(name, program), work, runs=arguments.runs, on_round=step)
    title = f"{show.work_line(program.name, work)}, traced {arguments.runs} times in the {name} runner"
    console.print(title)
    for each in profiles:
        console.print()
        console.print(show.profile_table(each))
    if arguments.plot:
        plots.plot_profiles(profiles, arguments.plot, title=title)
    return {
        "program": program.name,
        "runner": name,
        "work": work.to_dict(),
        "profiles": [each.to_dict() for each in profiles],
    }


def time_drafts(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Time the C++ runner with drafts and print two tables. Return what goes into the JSON file."""
    from llava_export.benchmark import drafts, plots, rounds, show
    from llava_export.cli.terminal import progress

    arguments.decode_tokens = arguments.decode_tokens or drafts.DECODE_TOKENS
    program, work = program_and_work(arguments)
    work = replace(work, depths=work.depths[-1:])
    build, peer = peer_of(arguments, work)
    with progress(console, steps=1 + (1 + bool(peer)) * (arguments.runs + 1)) as step:
        cpp = rounds.cpp_runner(program)
        results = drafts.measure_drafts(cpp, work, runs=arguments.runs, peer=peer, on_round=step)
    title = f"{show.work_line(program.name, work)}, median of {arguments.runs}"
    console.print(title)
    for table in (show.rows_table(results), show.drafts_table(results)):
        console.print()
        console.print(table)
    if build:
        console.print(build, style="dim")
    if arguments.plot:
        plots.plot_drafts(results, arguments.plot, title=title)
    return {"program": program.name, "peer_build": build, "work": work.to_dict(), **results.to_dict()}


def ablate(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Export a checkpoint with one thing changed at a time, time it, and print a table. Return it for JSON."""
    from tempfile import TemporaryDirectory

    from llava_export.benchmark import ladders, plots, show
    from llava_export.benchmark.rounds import Work
    from llava_export.builtin import SAMPLE_IMAGE
    from llava_export.cli.terminal import progress

    work = Work.fitting(
        max_seq_len=ladders.SHORT_CONTEXT,
        max_context_len=ladders.SHORT_CONTEXT,
        **lengths(arguments, image=(arguments.image or SAMPLE_IMAGE).resolve()),
    )
    measured = []
    with TemporaryDirectory() as folder:
        for ladder in (ladders.speed_ladder(f"decode at {work.depths[-1]}"), ladders.MEMORY_LADDER):
            steps = len(ladder.rungs) * (arguments.runs + 2)
            with progress(console, steps=steps) as step:
                results = ladders.run_ladder(
                    ladder, arguments.model, work, folder=Path(folder), runs=arguments.runs, on_step=step
                )
            measured.append((ladder, results))
    console.print(f"{show.work_line(arguments.model, work)}, median of {arguments.runs}")
    for ladder, results in measured:
        console.print()
        console.print(show.ladder_table(ladder, results))
    if arguments.plot:
        plots.plot_ladders(measured, arguments.plot, title=f"{arguments.model}, one thing changed at a time")
    return {
        "model": arguments.model,
        "ladders": [{**asdict(ladder), **results.to_dict()} for ladder, results in measured],
    }


def check(arguments: argparse.Namespace) -> None:
    """Raise ``UsageError`` for options that do not go together."""
    if arguments.ablation:
        given = [flag for flag in ("package", "peer", "runner") if getattr(arguments, flag)]
        if given:
            raise UsageError(f"--ablation exports --model by itself and runs it by llava_bench: no {', '.join(given)}")
        if not arguments.model:
            raise UsageError("--ablation needs --model, a checkpoint to export")
    elif not arguments.package:
        raise UsageError("name a PACKAGE, or --ablation and a --model")
    elif arguments.model:
        raise UsageError("--model is for --ablation")
    files = [flag for flag in ("gguf", "mmproj") if getattr(arguments, flag)]
    if (arguments.peer and len(files) < 2) or (files and not arguments.peer):
        raise UsageError("--peer llama.cpp, --gguf and --mmproj go together")
    if arguments.draft and "python" in (arguments.runner or ()):
        raise UsageError("--draft times the C++ runner alone: no --runner python")
    if arguments.profile and (arguments.peer or len(arguments.runner or ()) > 1 or arguments.depth):
        raise UsageError("--profile traces one runner, after the prompt: no --peer, no --depth, one --runner")


def program_and_work(arguments: argparse.Namespace) -> tuple[Path, Work]:
    """Return the program of a package, and what each round does with it. Raises ``UserError`` if it is no package."""
    from llava_export.benchmark.rounds import Work
    from llava_export.builtin import SAMPLE_IMAGE
    from llava_export.pte.read.describe import card_of
    from llava_export.pte.read.program import read_pte
    from llava_runner.contract import IMAGE_FILE
    from llava_runner.program_file import find_program

    program = find_program(arguments.package).resolve()
    card = card_of(read_pte(program))
    if card is None:
        raise UsageError(f"{program} has no model card, so it is not a program that llava export made")
    if not card.num_image_tokens:
        raise UsageError(f"{program} is a language model without images; llava_bench without --image times it")
    own_image = program.parent / IMAGE_FILE
    image = arguments.image or (own_image if own_image.exists() else SAMPLE_IMAGE)
    work = Work.fitting(
        max_seq_len=card.max_seq_len,
        max_context_len=card.max_context_len,
        num_image_tokens=card.num_image_tokens,
        **lengths(arguments, image=image.resolve()),
    )
    if arguments.profile and work.prompt_tokens > card.max_seq_len:
        raise UsageError(f"--profile: a prompt of more than {card.max_seq_len} tokens takes several calls")
    return program, work


def lengths(arguments: argparse.Namespace, *, image: Path) -> dict[str, Any]:
    """Return what the command line says of the work of a round. None stands for a default."""
    return {
        "image": image,
        "prompt_tokens": arguments.prompt_tokens,
        "decode_tokens": arguments.decode_tokens,
        "depths": arguments.depth,
        "threads": arguments.threads,
    }


def peer_of(arguments: argparse.Namespace, work: Work) -> tuple[str, Contender] | tuple[None, None]:
    """Return the name of the peer's build, and the peer. Neither is there if the command line names none."""
    from llava_export.benchmark import llama_cpp, rounds

    if not arguments.peer:
        return None, None
    context = max(work.prompt_tokens, max(work.depths) + work.decode_tokens)
    peer = rounds.llama_cpp(arguments.gguf.resolve(), arguments.mmproj.resolve(), context=context)
    return llama_cpp.build_name(), peer


def default_runner() -> tuple[str]:
    """Return the C++ runner where it is built, otherwise the Python runner."""
    from llava_export.benchmark.rounds import LLAVA_BENCH

    return ("cpp" if LLAVA_BENCH.is_file() else "python",)


def runner(name: str, program: Path) -> Contender:
    """Return the runner of this name, ready to time a program."""
    from llava_export.benchmark.rounds import cpp_runner, python_runner

    return cpp_runner(program) if name == "cpp" else python_runner(program)
