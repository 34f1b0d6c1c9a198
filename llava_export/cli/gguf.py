"""``llava gguf``: a checkpoint becomes GGUF files for llama.cpp."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from llava_export.cli.flags import add_checkpoint_flags, add_output_dir, add_prompt_template, checkpoint_parts
from llava_export.gguf.options import DEFAULT_MMPROJ_TYPE, DEFAULT_QUANTIZATION, MMPROJ_TYPES, TEXT_QUANTIZATIONS
from llava_runner.arguments import ArgumentParser, run_command

EPILOG = """example, without a download:
  llava gguf --model tiny-llava --output-dir gguf
  llava verify gguf

Then, in llama.cpp:
  llama-mtmd-cli -m gguf/ggml-model-q4_k_m.gguf \\
      --mmproj gguf/mmproj-model-f16.gguf --jinja \\
      --image photo.jpg -p "<__media__>\\nWhat is in the image?"
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "llava gguf") -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(prog), run, argv)


def build_parser(prog: str = "llava gguf") -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog=prog,
        description="Turn a LLaVA-family checkpoint into two GGUF files for llama.cpp:\n"
        "the language model, and vision tower with projector (mmproj).",
        epilog=EPILOG,
    )
    add_checkpoint_flags(parser)
    add_prompt_template(parser)
    add_output_dir(parser)
    parser.add_argument(
        "--quantization",
        choices=TEXT_QUANTIZATIONS,
        default=DEFAULT_QUANTIZATION,
        help="of the language model (default: %(default)s)",
    )
    parser.add_argument(
        "--mmproj-type",
        choices=MMPROJ_TYPES,
        default=DEFAULT_MMPROJ_TYPE,
        help="of vision tower and projector (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="go on where the disk seems not to suffice")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Export as the command line says. Raises a ``UserError`` for the user's mistakes."""
    from llava_export.cli.terminal import (
        ProgressStages,
        new_console,
        print_files,
        print_notes,
        print_prompt,
        silence_libraries,
    )

    silence_libraries()
    from llava_export.checkpoint.checkpoint import open_checkpoint
    from llava_export.checkpoint.prompt import find_prompt
    from llava_export.gguf.export import NUM_STAGES, export_gguf

    console = new_console()
    stages = ProgressStages(console, total=NUM_STAGES)
    with stages.running():
        with stages.stage("open checkpoint"):
            checkpoint = open_checkpoint(arguments.model, **checkpoint_parts(arguments))
            prompt = find_prompt(checkpoint, given=arguments.prompt_template)
        notes = (*checkpoint.notes, *prompt.notes)
        for note in notes:
            stages.note(note)
        files = export_gguf(
            checkpoint,
            quantization=arguments.quantization,
            mmproj_type=arguments.mmproj_type,
            prompt=prompt,
            output_dir=arguments.output_dir,
            force=arguments.force,
            overwrite=arguments.overwrite,
            stages=stages,
        )
    console.print(stages.table())
    print_files(console, files, folder=arguments.output_dir)
    print_prompt(console, prompt)
    print_notes(console, notes)
    console.print(f"\nverify it:  llava verify {arguments.output_dir}", soft_wrap=True)
