"""``python -m llava_export.export``: the command line of the exporter."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llava_export.errors import ExportError
from llava_export.memory import use_huge_pages
from llava_export.recipe import ALGORITHMS, DEFAULT_RECIPE, EMBEDDING_BITS, KV_CACHES, LINEAR_SCHEMES, RECIPES
from llava_runner import contract
from llava_runner.errors import exit_cleanly

if TYPE_CHECKING:
    from rich.console import Console

    from llava_export.pipeline import Plan
    from llava_export.targets.report import MethodReport

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
LOWERINGS = ("stamped", "ordinary")
# Here and not from `targets.gguf`, which takes a while to import.
QUANTIZATIONS = ("f16", "q8_0", "q4_0", "q4_k_s", "q4_k_m")
MMPROJ_TYPES = ("f16", "q8_0", "f32")
GGUF_FLAGS = ("quantization", "mmproj_type")
COMMON_FLAGS = ("model", "vision_tower", "format", "output_dir", "force")
EPILOG = """example, without a download:
  python -m llava_export.export --model tiny-llava --output-dir demo --with-artifacts
  test_pte demo/llava.pte
  llava-run --model_path demo/llava.pte --image_path demo/image.png --prompt "What is in the image?"
"""


def main() -> None:
    arguments = build_parser().parse_args()
    exit_cleanly(lambda: run(arguments))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava_export.export",
        description="Turn a LLaVA-family checkpoint into an ExecuTorch package, or into GGUF files for llama.cpp.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="hub id, folder of a checkpoint, or a built-in one like tiny-mobilevlm (default: %(default)s)",
    )
    parser.add_argument(
        "--vision-tower", help="hub id or folder of the CLIP tower, where the checkpoint has none inside"
    )
    parser.add_argument(
        "--format",
        choices=("pte", "gguf"),
        default="pte",
        help="pte for ExecuTorch, gguf for llama.cpp (default: %(default)s)",
    )
    gguf = parser.add_argument_group("with --format gguf")
    gguf.add_argument(
        "--quantization", choices=QUANTIZATIONS, default="q4_k_m", help="of the language model (default: %(default)s)"
    )
    gguf.add_argument("--mmproj-type", choices=MMPROJ_TYPES, default="f16", help="of the rest (default: %(default)s)")
    parser.add_argument("--pte-name", default="llava.pte", help="file name of the program (default: %(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path(), help="folder to write to (default: the current one)")
    parser.add_argument(
        "--with-artifacts", action="store_true", help="also write tokenizer.bin, tokenizer.model, image.pt, image.png"
    )
    parser.add_argument(
        "--recipe", choices=RECIPES, default=DEFAULT_RECIPE, help="what is quantized how (default: %(default)s)"
    )
    parser.add_argument("--group-size", type=int, help="input features a 4-bit scale serves (default: 128)")
    parser.add_argument("--embedding-bits", type=int, choices=EMBEDDING_BITS, help="default: the recipe's")
    parser.add_argument("--vision", choices=LINEAR_SCHEMES, help="tower and projector linears (default: the recipe's)")
    parser.add_argument(
        "--kv-cache", choices=KV_CACHES, help="type of the cached keys and values (default: the recipe's)"
    )
    parser.add_argument("--algorithm", choices=ALGORITHMS, help="how scales are chosen (default: minmax)")
    parser.add_argument("--max-seq-len", type=int, help="most tokens a call takes (default: 768)")
    parser.add_argument("--max-context-len", type=int, help="positions of the KV cache (default: 768)")
    parser.add_argument(
        "--partitioners",
        type=int,
        choices=(1, 2),
        default=2,
        help="1 delegates the quantized linears alone, the published baseline (default: %(default)s)",
    )
    parser.add_argument(
        "--lowering",
        choices=LOWERINGS,
        default="stamped",
        help="ordinary lowers every layer instead of a few that the others are copies of (default: %(default)s)",
    )
    parser.add_argument("--report", action="store_true", help="print what each method delegates and what it leaves")
    parser.add_argument(
        "--no-golden", action="store_true", help="do not ask the float model; test_pte then has nothing to compare with"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what the export will need and make, and stop")
    parser.add_argument("--force", action="store_true", help="go on where memory or disk seem not to suffice")
    return parser


def run(arguments: argparse.Namespace) -> None:
    _check_names(arguments)
    _check_format(arguments)
    if arguments.format == "gguf":
        run_gguf(arguments)
    else:
        run_pte(arguments)


def run_gguf(arguments: argparse.Namespace) -> None:
    silence_libraries()
    from rich.console import Console

    from llava_export.checkpoint.checkpoint import open_checkpoint
    from llava_export.gguf_pipeline import NUM_STAGES, export_gguf
    from llava_export.stages import Stages

    console = Console()
    stages = Stages(console, total=NUM_STAGES)
    with stages.running():
        with stages.stage("open checkpoint"):
            checkpoint = open_checkpoint(arguments.model, vision_tower=arguments.vision_tower)
        files = export_gguf(
            checkpoint,
            quantization=arguments.quantization,
            mmproj_type=arguments.mmproj_type,
            output_dir=arguments.output_dir,
            force=arguments.force,
            stages=stages,
        )
    console.print(stages.table())
    print_files(console, files, folder=arguments.output_dir)
    console.print(f"\nprove it:  test_gguf {arguments.output_dir}", highlight=False)


def run_pte(arguments: argparse.Namespace) -> None:
    recipe = RECIPES[arguments.recipe].with_changes(
        group_size=arguments.group_size,
        embedding_bits=arguments.embedding_bits,
        vision=arguments.vision,
        kv_cache=arguments.kv_cache,
        algorithm=arguments.algorithm,
    )
    silence_libraries()
    use_huge_pages()
    from rich.console import Console

    from llava_export.pipeline import NUM_STAGES, export, plan
    from llava_export.preflight import shortages
    from llava_export.stages import Stages

    console = Console()
    stages = Stages(console, total=NUM_STAGES - arguments.no_golden)
    with stages.running():
        with stages.stage("open checkpoint"):
            planned = plan(
                arguments.model,
                recipe=recipe,
                vision_tower=arguments.vision_tower,
                max_seq_len=arguments.max_seq_len,
                max_context_len=arguments.max_context_len,
                partitioners=arguments.partitioners,
                lowering=arguments.lowering,
                golden=not arguments.no_golden,
                artifacts=arguments.with_artifacts,
            )
        lacking = shortages(planned.estimate, output_dir=arguments.output_dir)
        if not arguments.dry_run:
            if lacking and not arguments.force:
                raise ExportError(f"{'; '.join(lacking)}. --force exports nevertheless")
            for shortage in lacking:
                stages.note(shortage)
            exported = export(planned, output_dir=arguments.output_dir, pte_name=arguments.pte_name, stages=stages)
    if arguments.dry_run:
        print_estimate(console, planned, lacking=lacking)
        return
    if arguments.report:
        for report in exported.reports:
            print_report(console, report)
    console.print(stages.table())
    print_files(console, exported.files, folder=exported.program.parent)
    if contract.golden_path(exported.program).name in exported.files:
        console.print(f"\nprove it:  test_pte {exported.program}", highlight=False)


def silence_libraries() -> None:
    """Import-time chatter of torch, torchao and transformers about machines other than this one."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def print_estimate(console: Console, planned: Plan, *, lacking: list[str]) -> None:
    from rich.table import Table

    from llava_export.stages import readable_size

    needed = planned.estimate
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("memory of the export", readable_size(needed.memory))
    table.add_row("disk while exporting", readable_size(needed.disk))
    table.add_row("the program", readable_size(needed.program))
    table.add_row(f"memory of llava-run, context {planned.max_context_len}", readable_size(needed.device_memory))
    console.print(table)
    for shortage in lacking:
        console.print(f"[yellow]{shortage}[/]", highlight=False)


def print_report(console: Console, report: MethodReport) -> None:
    from rich.table import Table

    from llava_export.targets.report import REASONS

    console.print(
        f"\n[bold]{report.method}[/]: {report.delegates} delegates with {report.delegated.total()} operators, "
        f"{report.outside.total()} outside"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("outside XNNPACK")
    table.add_column("times", justify="right")
    table.add_column("why")
    for name, count in report.outside.most_common():
        table.add_row(name, str(count), REASONS.get(name, "[red]not expected here: please report[/]"))
    if report.outside:
        console.print(table)


def print_files(console: Console, files: Mapping[str, int], *, folder: Path) -> None:
    console.print()
    for name, size in files.items():
        console.print(f"  {folder / name}  [dim]{size / 1e6:,.1f} MB[/]", highlight=False)


def _check_format(arguments: argparse.Namespace) -> None:
    """A flag of the other format would do nothing."""
    parser = build_parser()
    unused = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(arguments).items()
        if value != parser.get_default(name)
        and name not in COMMON_FLAGS
        and (name in GGUF_FLAGS) != (arguments.format == "gguf")
    ]
    if unused:
        raise ExportError(f"{', '.join(unused)}: not for --format {arguments.format}")


def _check_names(arguments: argparse.Namespace) -> None:
    name = Path(arguments.pte_name)
    if name.name != arguments.pte_name or name.suffix != ".pte" or not name.stem:
        raise ExportError(f"--pte-name {arguments.pte_name!r} must be a file name that ends in .pte; see --output-dir")
    for flag in ("max_seq_len", "max_context_len"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise ExportError(f"--{flag.replace('_', '-')} {value} must be at least 1")
    if arguments.output_dir.exists() and not arguments.output_dir.is_dir():
        raise ExportError(f"--output-dir {arguments.output_dir} is a file")


if __name__ == "__main__":
    main()
