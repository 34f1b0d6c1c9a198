"""The command ``llava run``, also ``llava-run``: ask a question about an image, and print the answer as it comes."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from llava_runner.arguments import (
    ArgumentParser,
    add_image_and_threads,
    path,
    positive_int,
    real_number,
    run_command,
    seed,
)
from llava_runner.contract import IMAGE_ASPECT_RATIOS
from llava_runner.errors import PromptError

if TYPE_CHECKING:
    from llava_runner.session import Session

EPILOG = """The prompt is one of three:
  What is this?              a plain question; the model's template is added
  What is this? ASSISTANT:   text with the cue for an answer; it goes unchanged
                             after the system sentence, "USER: " and the image
  USER: <image> ASSISTANT:   text with <image>; it is the whole prompt, and the
                             image takes the place of <image>

With --interactive, /image PATH shows an image to the next question, /reset
forgets the conversation, and /quit or the end of stdin ends it. Anything else
is a plain question, even with <image> or ASSISTANT: in it.

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
        help="tokenizer.model, .bin or .json (default: in the folder of the .pte)",
    )
    add("--prompt", metavar="TEXT", help=r"a question or a longer text, see below; \n in it is a new line")
    add(
        "--interactive",
        action="store_true",
        help="go on with questions from stdin, one a line; see below",
    )
    add_image_and_threads(
        parser, image_help="an image file, or a .pt file with a tensor uint8 [3, H, W] (default: no image)"
    )
    add(
        "--seq-len",
        type=positive_int,
        metavar="N",
        help="most positions of prompt and answer together (default: the context)",
    )
    add("--max-new-tokens", type=positive_int, metavar="N", help="most tokens of the answer (default: as many as fit)")
    add("--temperature", type=real_number, default=0.0, metavar="T", help="0 takes the most likely token (default: 0)")
    add(
        "--top-p",
        type=real_number,
        default=1.0,
        metavar="P",
        help="sample only from the most likely tokens, which have probability P together (default: 1)",
    )
    add("--seed", type=seed, metavar="N", help="make sampling repeatable")
    add(
        "--image-aspect-ratio",
        choices=IMAGE_ASPECT_RATIOS,
        help="make the image square by padding, cropping or stretching (default: as the checkpoint says)",
    )
    add(
        "--check",
        action="store_true",
        help="compare all of the program with its manifest first; without it, weights are not compared",
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Load the package, and print each answer with its timings. Raises a ``UserError`` for the user's mistakes."""
    package = arguments.package or arguments.model_path
    if package is None or (arguments.package and arguments.model_path):
        raise PromptError("name one package: llava run PACKAGE, or --model-path PATH")
    if not arguments.prompt and not arguments.interactive:
        raise PromptError("--prompt is missing; --interactive takes questions from stdin instead")
    # Imported as late as possible: no mistake in the flags should wait for torch.
    from llava_runner.contract import MAX_CONTEXT
    from llava_runner.conversation import converse
    from llava_runner.image import load_image
    from llava_runner.prompt import check_prompt
    from llava_runner.sampler import Sampler
    from llava_runner.session import ImageSource, Session

    # Mistakes in the options and the image are found before gigabytes are loaded.
    sampling = {"temperature": arguments.temperature, "top_p": arguments.top_p, "seed": arguments.seed}
    Sampler(**sampling)
    prompt = (arguments.prompt or "").replace("\\n", "\n")
    if prompt:
        check_prompt(prompt, num_images=int(arguments.image is not None))
    image = load_image(arguments.image) if arguments.image else None

    options = {
        **sampling,
        "max_new_tokens": arguments.max_new_tokens or MAX_CONTEXT,  # in place of the model's own
        "seq_len": arguments.seq_len,
        "image_aspect_ratio": arguments.image_aspect_ratio,
    }
    session = Session.load(
        package, tokenizer=arguments.tokenizer_path, cpu_threads=arguments.threads, check=arguments.check
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows "?"; printing does not fail
    if prompt:
        show(session, session.generate(image, prompt, **options))
        image = None
    if arguments.interactive:

        def ask(shown: ImageSource | None, question: str) -> None:
            show(session, session.chat(question, image=shown, **options))

        lines = io.BytesIO() if sys.stdin is None else sys.stdin.buffer
        converse(lines, image=image, ask=ask, reset=session.reset)


def show(session: Session, pieces: Iterator[str]) -> None:
    """Print an answer as it comes, and then its timings."""
    from llava_runner.timings import columns_of

    for text in pieces:
        print(text, end="", flush=True)
    print(flush=True)
    if session.last.stop_reason == "context":
        print(f"note: the answer ends where the context of {session.card.max_context_len} is full", file=sys.stderr)
    print(session.last.timings.report(columns=columns_of(sys.stderr)), file=sys.stderr)
