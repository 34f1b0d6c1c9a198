"""``llava evaluate --dataset``: a package asked about the items of a data set, and its answers scored."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_export.cli.flags import UsageError, checkpoint_parts, file_to_write
from llava_export.cli.written import checkpoint_files, package_files, refuse_to_replace
from llava_runner.arguments import path, positive_int, real_number, thread_count

if TYPE_CHECKING:
    from rich.console import Console

    from llava_export.evaluate.asking import Job
    from llava_export.evaluate.datasets import Dataset
    from llava_export.evaluate.items import Item
    from llava_export.evaluate.records import Record

LAYOUTS = ("auto", "items", "vqav2", "textvqa", "pope", "gqa", "scienceqa", "docvqa")
METRICS = ("exact", "caseless", "vqa", "yes-no", "letter", "anls")
ENGINES = ("local", "ray")
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Work:
    """What is asked and what was asked before: ``left`` are the items that have no record yet."""

    dataset: Dataset
    job: Job
    records: dict[str, Record]
    left: list[Item]
    skipped: dict[str, str]
    header: dict[str, Any]


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of an evaluation on a data set."""
    add = parser.add_argument_group("on a data set").add_argument
    add("--dataset", type=path, metavar="PATH", help="a folder or file of items: image, question, answers")
    add("--layout", choices=LAYOUTS, default="auto", metavar="NAME", help=f"of the data set: {', '.join(LAYOUTS)}")
    add("--images", type=path, metavar="DIR", help="the folder of its images (default: where the layout has them)")
    add("--split", default="test", help="which part of ScienceQA (default: %(default)s)")
    add("--limit", type=positive_int, metavar="N", help="take the first N items only")
    add("--metric", choices=METRICS, metavar="NAME", help=f"{', '.join(METRICS)} (default: the layout's)")
    add("--prompt-suffix", metavar="TEXT", help="what is appended to each question (default: the layout's)")
    add(
        "--max-new-tokens",
        type=positive_int,
        default=MAX_NEW_TOKENS,
        metavar="N",
        help="of an answer (default: %(default)s)",
    )
    add("--compare", type=path, metavar="PACKAGE", help="also ask this package, and compare the two item by item")
    add("--skip-unreadable", action="store_true", help="go on without the images that cannot be read")
    add("--at-least", type=fraction, metavar="FRACTION", help="exit with 1 if a mean score is below this")
    add(
        "--output",
        type=file_to_write,
        metavar="FILE",
        help="a .jsonl with a line for each item, as it comes; the same command goes on with it",
    )
    add("--overwrite", action="store_true", help="begin anew with --output, whatever it has")
    add("--html", type=file_to_write, metavar="FILE", help="with --compare: a page of the items in which they differ")
    add("--engine", choices=ENGINES, default="local", help="here, or on a Ray cluster; needs the extra ray")
    add("--workers", type=positive_int, metavar="N", help="with ray: how many processes ask (default: one a machine)")
    add("--address", metavar="HOST:PORT", help="with ray: a running cluster (default: one is started here)")
    add("--threads", "--cpu-threads", type=thread_count, metavar="N", help="threads that a process computes with")


def fraction(text: str) -> float:
    """Return a number from 0 to 1. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    value = real_number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction, from 0 to 1")
    return value


def run_dataset(arguments: argparse.Namespace) -> int:
    """Evaluate, print the figures, and return the exit code. Raises ``UserError`` for the user's mistakes."""
    check(arguments)
    from llava_export.cli.evaluate_tables import print_evaluation, print_skipped
    from llava_export.cli.terminal import new_console, silence_libraries
    from llava_export.evaluate.figures import score_figures
    from llava_export.evaluate.results import results_file

    silence_libraries()
    console = new_console()
    work = plan(arguments, console)
    print_skipped(console, work.skipped)
    if work.records:
        console.print(f"{len(work.records)} of {len(work.records) + len(work.left)} items are in {arguments.output}")
    coming = progressing(console, work, answers(arguments, work, console))
    first = list(islice(coming, 1))  # before a file is touched: the packages may not load, or a cluster not be there
    with results_file(arguments.output if first else None, work.header, overwrite=arguments.overwrite) as file:
        for record in chain(first, coming):
            if file is not None:
                file.add(record)
            work.records[record.id] = record
    records = [work.records[item.id] for item in work.dataset.items if item.id in work.records]
    write_files(arguments, records, work)
    print_evaluation(console, records, work.dataset, work.job)
    totals = [score_figures(records, work.dataset.metric, package=i)[0] for i in range(len(work.job.programs))]
    least = arguments.at_least
    return 1 if least is not None and any((total.value or 0.0) < least for total in totals) else 0


def check(arguments: argparse.Namespace) -> None:
    """Raise ``UsageError`` for options that do not go together."""
    if arguments.package is None:
        raise UsageError("PACKAGE is missing: what is asked about the data set")
    needs = {
        "--html": (arguments.html, "--compare", arguments.compare),
        "--overwrite": (arguments.overwrite, "--output", arguments.output),
        "--workers": (arguments.workers, "--engine ray", arguments.engine == "ray"),
        "--address": (arguments.address, "--engine ray", arguments.engine == "ray"),
    }
    parts = checkpoint_parts(arguments)
    needs |= {f"--{name.replace('_', '-')}": (part, "--against", arguments.against) for name, part in parts.items()}
    for flag, (given, other, is_there) in needs.items():
        if given and not is_there:
            raise UsageError(f"{flag} goes with {other}, which is missing")
    written = [file for file in (arguments.output, arguments.json, arguments.html) if file is not None]
    if len({file.resolve() for file in written}) < len(written):
        raise UsageError("--output, --json and --html must be different files")
    for file in written:
        if file.resolve().parent == arguments.dataset.resolve():
            raise UsageError(f"{file} would belong to the data set; write to another folder")
    read = read_paths(arguments, parts)
    goes_on = [arguments.output] if arguments.output is not None and not arguments.overwrite else []
    refuse_to_replace([file for file in written if file not in goes_on], read)
    refuse_to_replace(goes_on, filter(Path.is_file, read))  # in a folder it may be, if an earlier run wrote it


def read_paths(arguments: argparse.Namespace, parts: Mapping[str, str | None]) -> list[Path]:
    """Return the files and folders that a command line says are read. What the data set names is not among them."""
    from llava_export.evaluate.layouts import Source

    packages = [package_files(package) for package in (arguments.package, arguments.compare) if package is not None]
    images = [] if arguments.images is None else [arguments.images]
    checkpoints = checkpoint_files(arguments.against, *parts.values())
    return [*Source(arguments.dataset).read_with(), *images, *chain.from_iterable(packages), *checkpoints]


def plan(arguments: argparse.Namespace, console: Console) -> Work:
    """Return what is to be asked, after all was looked at that can be wrong with it. Raises ``UserError``."""
    from llava_export.cli.terminal import counted
    from llava_export.evaluate.asking import Job, check_against, float_options, open_reader, package_headers
    from llava_export.evaluate.datasets import check_lengths, open_dataset, refuse_unreadable, unreadable
    from llava_export.evaluate.layouts import Source
    from llava_export.evaluate.ray_engine import check_ray
    from llava_export.evaluate.results import read_results
    from llava_runner.program_file import find_program

    if arguments.engine == "ray":
        check_ray()
    dataset = open_dataset(
        Source(arguments.dataset, images=arguments.images, split=arguments.split),
        layout=None if arguments.layout == "auto" else arguments.layout,
        metric=arguments.metric,
        suffix=arguments.prompt_suffix,
        limit=arguments.limit,
    )
    images = (dataset.folder / image for image in dict.fromkeys(item.image for item in dataset.items) if image)
    refuse_to_replace((arguments.output, arguments.json, arguments.html), images)
    packages = [arguments.package, *([arguments.compare] if arguments.compare else [])]
    job = Job(
        programs=tuple(map(find_program, packages)),
        folder=dataset.folder,
        metric=dataset.metric.name,
        max_new_tokens=arguments.max_new_tokens,
        against=arguments.against,
        parts=checkpoint_parts(arguments),
        threads=arguments.threads,
    )
    readers = [open_reader(program) for program in job.programs]
    check_against(job, readers)
    options = {"metric": job.metric, "max_new_tokens": job.max_new_tokens, **float_options(job)}
    header = {"packages": package_headers(job.programs), "dataset": dataset.header(), "options": options}
    records = read_results(arguments.output, header, overwrite=arguments.overwrite) if arguments.output else {}
    left = [item for item in dataset.items if item.id not in records]
    check_lengths(left, readers)
    with counted(console, total=len(left)) as step:
        skipped = unreadable(left, folder=dataset.folder, on_item=lambda: step("looking at the images"))
    if not arguments.skip_unreadable or len(skipped) == len({item.image for item in dataset.items}):
        refuse_unreadable(skipped)
    return Work(dataset, job, records, [item for item in left if item.image not in skipped], skipped, header)


def answers(arguments: argparse.Namespace, work: Work, console: Console) -> Iterator[Record]:
    """Yield the record of each item that is left, as it comes."""
    from llava_export.evaluate.asking import ask_here
    from llava_export.evaluate.ray_engine import ask_on_ray

    if not work.left:
        return iter(())
    if arguments.engine == "ray":

        def tell(item: Item) -> None:
            console.print(f"a worker has ended; item {item.id} is given to another one", style="yellow")

        return ask_on_ray(work.job, work.left, workers=arguments.workers, address=arguments.address, on_lost=tell)
    return ask_here(work.job, work.left)


def progressing(console: Console, work: Work, records: Iterator[Record]) -> Iterator[Record]:
    """Yield records, with their number, the mean score so far and the time left on a terminal."""
    from llava_export.cli.terminal import counted

    done = len(work.records)
    totals = [sum(record.results[i].score for record in work.records.values()) for i in range(len(work.job.programs))]
    with counted(console, total=done + len(work.left), done=done) as step:
        for count, record in enumerate(records, start=done + 1):
            totals = [total + result.score for total, result in zip(totals, record.results, strict=True)]
            step(" ".join(f"{total / count:.1%}" for total in totals))
            yield record


def write_files(arguments: argparse.Namespace, records: Sequence[Record], work: Work) -> None:
    """Write the files of figures and the page that were asked for, each whole or not at all."""
    import json

    from llava_export.evaluate.figures import to_dict
    from llava_export.evaluate.page import page
    from llava_export.staging import write_whole

    metric, names = work.dataset.metric, [str(program) for program in work.job.programs]
    if arguments.json:
        figures = {**work.header, "skipped": work.skipped, **to_dict(records, metric, names)}
        write_whole(arguments.json, json.dumps(figures, indent=2) + "\n")
    if arguments.html:
        write_whole(arguments.html, page(records, work.dataset, names=names))
