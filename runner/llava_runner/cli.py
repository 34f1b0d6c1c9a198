"""The command ``llava run``, also ``llava-run``: ask a question about an image, and print the answer as it comes."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from llava_runner.arguments import ArgumentParser, add_image_and_threads, path, run_command
from llava_runner.errors import PromptError

EPILOG = """The prompt is one of three:
  What is this?              a plain question; the model's template is added
  What is this? ASSISTANT:   text with the cue for an answer; it goes unchanged
                             after the system sentence, "USER: " and the image
  USER: <image> ASSISTANT:   text with <image>; it is the whole prompt, and the
                             image takes the place of <image>

example:
  llava run package --image photo.jpg --prompt "What is in the image?"
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "llava-run") -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(prog), run, argv)


def build_parser(prog: str = "llava run") -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog=prog,
        description="Ask a package about an image. The answer goes to stdout, timings to stderr.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("package", nargs="?", type=path, metavar="PACKAGE", help="a .pte, or the folder of a package")
    add("--model-path", type=path, metavar="PATH", help="the same as PACKAGE")
    add(
        "--tokenizer-path",
        type=path,
        metavar="PATH",
        help="tokenizer.model or tokenizer.bin (default: in the folder of the .pte)",
    )
    add(
        "--prompt",
        required=True,
        metavar="TEXT",
        help=r"a question or a longer text, see below; \n in it is a new line",
    )
    add_image_and_threads(
        parser, image_help="an image file, or a .pt file with a tensor uint8 [3, H, W] (default: no image)"
    )
    add("--seq-len", type=int, metavar="N", help="most positions of prompt and answer together (default: the context)")
    add("--max-new-tokens", type=int, metavar="N", help="most tokens of the answer (default: as many as fit)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 takes the most likely token (default: 0)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample only from the most likely tokens, which have probability P together (default: 1)",
    )
    add("--seed", type=int, metavar="N", help="make sampling repeatable")
    add(
        "--image-aspect-ratio",
        choices=("pad", "crop"),
        help="make the image square by padding or cropping (default: as in the model's training)",
    )
    add(
        "--check",
        action="store_true",
        help="compare all of the program with its manifest first; without it, weights are not compared",
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Load the package, print the answer and then the timings. Raises a ``UserError`` for the user's mistakes."""
    from llava_runner.image import load_image
    from llava_runner.sampler import Sampler
    from llava_runner.session import Session

    package = arguments.package or arguments.model_path
    if package is None or (arguments.package and arguments.model_path):
        raise PromptError("name one package: llava run PACKAGE, or --model-path PATH")
    # Mistakes in the options and the image are found before gigabytes are loaded.
    sampling = {"temperature": arguments.temperature, "top_p": arguments.top_p, "seed": arguments.seed}
    Sampler(**sampling)
    image = load_image(arguments.image) if arguments.image else None

    session = Session.load(
        package, tokenizer=arguments.tokenizer_path, cpu_threads=arguments.threads, check=arguments.check
    )
    pieces = session.generate(
        image,
        arguments.prompt.replace("\\n", "\n"),
        **sampling,
        max_new_tokens=arguments.max_new_tokens,
        seq_len=arguments.seq_len,
        image_aspect_ratio=arguments.image_aspect_ratio,
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows "?"; printing does not fail
    for text in pieces:
        print(text, end="", flush=True)
    print(flush=True)
    if session.stop_reason == "context":
        print(f"note: the answer ends where the context of {session.card.max_context_len} is full", file=sys.stderr)
    print(session.timings.report(), file=sys.stderr)
