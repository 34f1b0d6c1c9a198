"""``llava export``: a checkpoint becomes a package for ExecuTorch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, indent
from typing import TYPE_CHECKING, NoReturn

from llava_export.cli.flags import (
    DEFAULT_SAMPLES,
    UsageError,
    add_checkpoint_flags,
    add_output_dir,
    add_prompt_template,
    add_recipe_flags,
    byte_count,
    checkpoint_parts,
    chosen_recipe,
    plot_file,
)
from llava_export.errors import ExportError
from llava_export.pte.options import LOWERINGS, PARTITIONERS, Options
from llava_export.system import DEVICES, use_huge_pages
from llava_runner import contract
from llava_runner.arguments import ArgumentParser, positive_int, run_command

if TYPE_CHECKING:
    from rich.console import Console

    from llava_export.pte.export import Exported
    from llava_export.pte.plan import Plan
    from llava_export.pte.report import MethodReport

# Flags that a language model alone does not take. Its draft reads the prompts of the model that it drafts for.
ABOUT_IMAGES = ("vision_tower", "projector", "vision", "prompt_template")
# Which recipe to take: also in the guide and in docs/RECIPES.md, whose figures it follows from.
ADVICE = (
    "The default recipe needs no samples and no time.",
    "`--algorithm awq-gptq` keeps much more of the model, in a program of the same size and speed, but reads samples "
    "for minutes, or for hours where a large model is calibrated without a GPU.",
    "Where the device has more memory, `--recipe 8da8w` loses the least, and `--budget` spends what there is on the "
    "linears that lose most.",
)
EPILOG = f"""which recipe:
{indent(fill(" ".join(ADVICE).replace("`", ""), 76, break_on_hyphens=False), "  ")}

example, without a download:
  llava export --model tiny-llava --output-dir demo --with-artifacts
  llava verify demo
  llava run demo --image demo/image.png --prompt "What is in the image?"
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "llava export") -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(prog), run, argv)


def build_parser(prog: str = "llava export") -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog=prog, description="Turn a LLaVA-family checkpoint into a package for ExecuTorch.", epilog=EPILOG
    )
    add_checkpoint_flags(parser)
    parser.add_argument(
        "--text-only",
        action="store_true",
        help="the model is a language model alone: export it, with its tokenizer, to draft for another",
    )
    add_prompt_template(parser)
    add_output_dir(parser)
    parser.add_argument(
        "--pte-name",
        type=pte_name,
        default="llava.pte",
        metavar="NAME",
        help="file name of the program (default: %(default)s)",
    )
    parser.add_argument(
        "--with-artifacts",
        action="store_true",
        help="also write what running takes: the tokenizer, and a sample as image.png and image.pt",
    )
    parser.add_argument(
        "--no-golden", action="store_true", help="do not ask the float model; there is then nothing to verify with"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what the export will need and make, and stop")
    parser.add_argument(
        "--force", action="store_true", help="go on where memory or disk seem not to suffice, or tokens not to be right"
    )
    parser.add_argument("--report", action="store_true", help="print what each method delegates and what it leaves")

    recipe = add_recipe_flags(parser)
    recipe.add_argument(
        "--device",
        choices=DEVICES,
        default=Options.device,
        help="where calibration and --budget compute (default: %(default)s)",
    )
    recipe.add_argument(
        "--budget",
        type=byte_count,
        metavar="SIZE",
        help="most bytes of the program, such as 4.2GB or 1100MiB: the linears that lose most get 8 bits",
    )
    recipe.add_argument(
        "--sensitivity-plot",
        type=plot_file,
        metavar="FILE",
        help="also draw what --budget measures, by layer and linear; needs the extra benchmark",
    )

    program = parser.add_argument_group("the program")
    program.add_argument(
        "--max-seq-len",
        type=positive_int,
        metavar="N",
        help="longest prompt of one call, in tokens (default: 768, or 1024 for images of more than 576 tokens)",
    )
    program.add_argument(
        "--max-context-len",
        type=positive_int,
        metavar="N",
        help="positions of the KV cache (default: that of --max-seq-len, or what the model allows)",
    )
    program.add_argument(
        "--logits-to-keep",
        type=int,
        choices=range(1, contract.MAX_LOGITS_TO_KEEP + 1),
        default=Options.logits_to_keep,
        metavar="N",
        help="tokens that the runners compute at a time, all but one of them guessed; 1 leaves guessing out "
        "(default: %(default)s)",
    )
    program.add_argument(
        "--partitioners",
        type=int,
        choices=PARTITIONERS,
        default=Options.partitioners,
        help="1 delegates the quantized linears alone (default: %(default)s)",
    )
    program.add_argument(
        "--lowering",
        choices=LOWERINGS,
        default=Options.lowering,
        help="ordinary lowers every layer instead of copying one (default: %(default)s)",
    )
    return parser


def pte_name(text: str) -> str:
    """Return the file name of a program. Raises ``ArgumentTypeError`` if it does not end in .pte or has a folder."""
    name = Path(text)
    if name.name != text or name.suffix != ".pte" or not name.stem:
        raise argparse.ArgumentTypeError(f"{text!r} must be a file name that ends in .pte; see --output-dir")
    return text


def options(arguments: argparse.Namespace) -> Options:
    """Return the choices of a command line."""
    return Options(
        recipe=chosen_recipe(arguments),
        text_only=arguments.text_only,
        max_seq_len=arguments.max_seq_len,
        max_context_len=arguments.max_context_len,
        logits_to_keep=arguments.logits_to_keep,
        partitioners=arguments.partitioners,
        lowering=arguments.lowering,
        golden=not arguments.no_golden,
        artifacts=arguments.with_artifacts,
        prompt_template=arguments.prompt_template,
        calibration_data=arguments.calibration_data,
        calibration_samples=arguments.calibration_samples or DEFAULT_SAMPLES,
        device=arguments.device,
        budget=arguments.budget,
    )


def run(arguments: argparse.Namespace) -> None:
    """Export as the command line says. Raises a ``UserError`` for the user's mistakes."""
    chosen = options(arguments)
    for flag in ABOUT_IMAGES if chosen.text_only else ():
        if getattr(arguments, flag) is not None:
            raise UsageError(f"--{flag.replace('_', '-')} is for models that see images, and not for --text-only")
    if arguments.sensitivity_plot and chosen.budget is None:
        raise UsageError("--sensitivity-plot draws what --budget measures, which is not given")
    use_huge_pages()
    from llava_export.cli.terminal import (
        ProgressStages,
        new_console,
        print_files,
        print_images,
        print_notes,
        print_prompt,
        silence_libraries,
    )

    silence_libraries()
    from llava_export.pte.export import export
    from llava_export.pte.plan import BUDGET_STAGES, CALIBRATION_STAGES, NUM_STAGES, plan
    from llava_export.pte.preflight import shortages

    console = new_console()
    total = NUM_STAGES - (not chosen.golden) + CALIBRATION_STAGES * chosen.recipe.calibrates
    total += BUDGET_STAGES * (chosen.budget is not None)
    stages = ProgressStages(console, total=total)
    with stages.running():
        with stages.stage("open checkpoint"):
            planned = plan(arguments.model, chosen, **checkpoint_parts(arguments))
        notes = (*planned.checkpoint.notes, *planned.prompt.notes)
        lacking = shortages(planned.estimate, output_dir=arguments.output_dir)
        if not arguments.dry_run:
            for note in notes:  # they are printed again at the end, which is far away
                stages.note(note)
            if lacking and not arguments.force:
                raise ExportError(f"{'; '.join(lacking)}. --force exports nevertheless")
            for shortage in lacking:
                stages.note(shortage)
            exported = export(
                planned,
                output_dir=arguments.output_dir,
                pte_name=arguments.pte_name,
                stages=stages,
                overwrite=arguments.overwrite,
                force=arguments.force,
            )
    if arguments.dry_run:
        print_estimate(console, planned, lacking=lacking)
        if not chosen.text_only:
            print_prompt(console, planned.prompt)
            print_images(console, planned.checkpoint.images)
        print_notes(console, notes)
        return
    if arguments.report:
        for report in exported.reports:
            print_report(console, report)
    console.print(stages.table())
    if chosen.budget is not None:
        print_budget(console, exported, planned, plot=arguments.sensitivity_plot)
    print_files(console, exported.files, folder=exported.program.parent)
    if not chosen.text_only:
        print_prompt(console, planned.prompt)
        print_images(console, planned.checkpoint.images)
    print_notes(console, notes)
    if contract.golden_path(exported.program).name in exported.files:
        console.print(f"\nverify it:  llava verify {exported.program}", soft_wrap=True)


def print_estimate(console: Console, planned: Plan, *, lacking: list[str]) -> None:
    """Print what an export will need, and what this machine lacks."""
    from rich.table import Table

    from llava_export.system import readable_size

    needed = planned.estimate
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("memory of the export", readable_size(needed.memory))
    table.add_row("disk while exporting", readable_size(needed.disk))
    table.add_row("the program", readable_size(needed.program))
    table.add_row(f"memory of llava run, context {planned.max_context_len}", readable_size(needed.device_memory))
    console.print(table)
    if planned.budget:
        console.print("the program is as large as the budget; which linears get 8 bits is measured in the export")
    for shortage in lacking:
        console.print(shortage, style="yellow")


def print_budget(console: Console, exported: Exported, planned: Plan, *, plot: Path | None) -> None:
    """Print which linears have 8 bits, and draw what was measured of them, if anything was."""
    from llava_export.benchmark.plots import plot_sensitivity
    from llava_export.calibration.budget import spent_text

    text = spent_text(exported.recipe, num_layers=planned.checkpoint.config.text.num_hidden_layers)
    console.print(f"\nbudget: {text}", soft_wrap=True)
    if plot and exported.kl is None:
        console.print("nothing was measured, and so nothing drawn: all of them fit", style="yellow")
    elif plot and exported.kl is not None:
        plot_sensitivity(exported.kl, plot, recipe=exported.recipe, title=planned.checkpoint.name)


def print_report(console: Console, report: MethodReport) -> None:
    """Print what a method delegates to XNNPACK, and each operator it leaves outside with the reason."""
    from rich.text import Text

    from llava_export.cli.terminal import plain_table
    from llava_export.pte.report import REASONS

    console.print(f"\n{report.method}", style="bold", end="")
    console.print(
        f": {report.delegates} delegates with {report.delegated.total()} operators, {report.outside.total()} outside"
    )
    table = plain_table("outside XNNPACK", "times", "why", right=("times",))
    for name, count in report.outside.most_common():
        reason = REASONS.get(name)
        table.add_row(name, str(count), reason or Text("not expected here: please report", style="red"))
    if report.outside:
        console.print(table)
