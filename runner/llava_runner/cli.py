"""``llava run``, also known as ``llava-run``: one question about an image, the answer streamed, timings at the end."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from llava_runner.arguments import ArgumentParser, positive_int, run_command
from llava_runner.errors import PromptError

EPILOG = """The prompt is a question. Or it has the assistant's cue in it, as in "What is this? ASSISTANT:",
and follows the system sentence, "USER: " and the image literally. Or it has <image> in it
and is the whole prompt, literally.

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
    add("package", nargs="?", metavar="PACKAGE", help="a .pte, or the folder of a package with one .pte")
    add("--model-path", metavar="PATH", help="the same as PACKAGE")
    add("--tokenizer-path", metavar="PATH", help="tokenizer.model or tokenizer.bin (default: next to the .pte)")
    add(
        "--image",
        "--image-path",
        metavar="PATH",
        help="an image, or a .pt with a uint8 [3, H, W] tensor (default: no image)",
    )
    add("--prompt", required=True, metavar="TEXT", help=r"question or prompt, see below; \n in it is a new line")
    add("--seq-len", type=int, metavar="N", help="limit of prompt and answer in positions (default: the context)")
    add("--max-new-tokens", type=int, metavar="N", help="limit of the answer in tokens (default: what fits)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default: 0)")
    add("--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest tokens only (default: 1)")
    add("--seed", type=int, metavar="N", help="makes sampling repeatable")
    add(
        "--threads",
        "--cpu-threads",
        type=positive_int,
        metavar="N",
        help="threads to compute with (default: the machine's fast cores)",
    )
    add(
        "--image-aspect-ratio",
        choices=("pad", "crop"),
        help="make the image square by padding or by cropping (default: as the model was trained)",
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Ask as the command line says. Raises a ``UserError`` for the user's mistakes."""
    from llava_runner.image import load_image
    from llava_runner.sampler import Sampler
    from llava_runner.session import Session

    package = arguments.package or arguments.model_path
    if package is None or (arguments.package and arguments.model_path):
        raise PromptError("name one package: llava run PACKAGE, or --model-path PATH")
    # Mistakes in the options or the image are found before gigabytes are loaded.
    sampling = {"temperature": arguments.temperature, "top_p": arguments.top_p, "seed": arguments.seed}
    Sampler(**sampling)
    image = load_image(arguments.image) if arguments.image else None

    session = Session.load(package, tokenizer=arguments.tokenizer_path, cpu_threads=arguments.threads)
    pieces = session.generate(
        image,
        arguments.prompt.replace("\\n", "\n"),
        **sampling,
        max_new_tokens=arguments.max_new_tokens,
        seq_len=arguments.seq_len,
        image_aspect_ratio=arguments.image_aspect_ratio,
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows "?" instead of failing
    for text in pieces:
        print(text, end="", flush=True)
    print(flush=True)
    if session.stop_reason == "context":
        print(f"note: the answer ends where the context of {session.card.max_context_len} is full", file=sys.stderr)
    print(session.timings.report(), file=sys.stderr)
