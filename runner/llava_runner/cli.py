"""The command ``llava run``, also ``llava-run``: ask a question about an image, and print the answer as it comes."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from llava_runner.arguments import (
    ArgumentParser,
    add_draft_model,
    add_engine,
    add_image_and_threads,
    draft_count,
    logprob_count,
    note_unused_draft,
    path,
    positive_int,
    real_number,
    run_command,
    seed,
    whole_number,
)
from llava_runner.contract import IMAGE_ASPECT_RATIOS
from llava_runner.draft import DRAFT_MAX
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
        parser,
        image_help="an image file, or a .pt file with a tensor uint8 [3, H, W]; may be given several times "
        "(default: no image)",
        several=True,
    )
    add_engine(parser)
    add(
        "--seq-len",
        type=positive_int,
        metavar="N",
        help="most positions of prompt and answer together (default: the context)",
    )
    add("--max-new-tokens", type=positive_int, metavar="N", help="most tokens of the answer (default: as many as fit)")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help=r"end the answer before this text; may be given several times, and \n in it is a new line",
    )
    add(
        "--json",
        action="store_true",
        help="print the answer as one line of JSON: text, ids, stop_reason, timings in milliseconds",
    )
    add(
        "--logprobs",
        type=logprob_count,
        metavar="N",
        help="with --json, also the log probability of each token, and of the N most likely ones in its place",
    )
    add(
        "--draft-max",
        type=draft_count,
        default=DRAFT_MAX,
        metavar="N",
        help="guess up to N tokens at a time, and check them at once; 0 guesses none (default: %(default)s)",
    )
    add_draft_model(parser)
    add("--temperature", type=real_number, default=0.0, metavar="T", help="0 takes the most likely token (default: 0)")
    add(
        "--top-k",
        type=whole_number,
        default=0,
        metavar="N",
        help="sample only from the N most likely tokens; 0 stands for all (default: 0)",
    )
    add(
        "--top-p",
        type=real_number,
        default=1.0,
        metavar="P",
        help="sample only from the most likely tokens, which have probability P together (default: 1)",
    )
    add(
        "--min-p",
        type=real_number,
        default=0.0,
        metavar="P",
        help="sample only from tokens that are at least P times as likely as the most likely one (default: 0)",
    )
    add(
        "--repetition-penalty",
        type=real_number,
        default=1.0,
        metavar="R",
        help="above 1 makes tokens that the conversation already has less likely, below 1 more likely (default: 1)",
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
    if arguments.logprobs is not None and not arguments.json:
        raise PromptError("--logprobs needs --json")
    # Imported as late as possible: no mistake in the flags should wait for torch.
    from llava_runner.contract import MAX_CONTEXT
    from llava_runner.image import load_image
    from llava_runner.image.kinds import ImageSource
    from llava_runner.prompt import check_prompt
    from llava_runner.sampler import Sampler
    from llava_runner.session import Session
    from llava_runner.stop_strings import checked_stops
    from llava_runner.terminal import converse

    # Mistakes in the options and the image are found before gigabytes are loaded.
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
    sampling = {name: getattr(arguments, name) for name in names}
    Sampler(**sampling)
    stops = checked_stops([with_new_lines(text) for text in arguments.stop])
    prompt = with_new_lines(arguments.prompt or "")
    if prompt:
        check_prompt(prompt, num_images=len(arguments.image))
    images = [load_image(path) for path in arguments.image]

    options = {
        **sampling,
        "stop": stops,
        "logprobs": arguments.logprobs,
        "draft_max": arguments.draft_max,
        "max_new_tokens": arguments.max_new_tokens or MAX_CONTEXT,  # in place of the model's own
        "seq_len": arguments.seq_len,
        "image_aspect_ratio": arguments.image_aspect_ratio,
    }
    session = Session.load(
        package,
        tokenizer=arguments.tokenizer_path,
        cpu_threads=arguments.threads,
        check=arguments.check,
        engine=arguments.engine,
        draft_model_path=arguments.draft_model_path,
    )
    note_unused_draft(arguments.draft_model_path, logits_to_keep=session.card.logits_to_keep)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows "?"; printing does not fail
    show = show_json if arguments.json else show_text
    if prompt:
        show(session, session.generate(images, prompt, **options))
        images = []
    if arguments.interactive:

        def ask(shown: Sequence[ImageSource], question: str) -> None:
            show(session, session.chat(question, image=shown, **options))

        lines = io.BytesIO() if sys.stdin is None else sys.stdin.buffer
        converse(lines, images=images, ask=ask, reset=session.reset, cue="" if arguments.json else "> ")


def with_new_lines(text: str) -> str:
    r"""Return a text with new lines in place of ``\n``, as it is typed in a shell."""
    return text.replace("\\n", "\n")


def show_json(session: Session, pieces: Iterator[str]) -> None:
    """Print an answer as one line of JSON when it has ended."""
    from llava_runner.answer_json import answer_json

    for _ in pieces:
        pass
    print(answer_json(session.last), flush=True)


def show_text(session: Session, pieces: Iterator[str]) -> None:
    """Print an answer as it comes, and then its timings."""
    from llava_runner.timings import columns_of

    for text in pieces:
        print(text, end="", flush=True)
    print(flush=True)
    if session.last.stop_reason == "context":
        print(f"note: the answer ends where the context of {session.card.max_context_len} is full", file=sys.stderr)
    print(session.last.timings.report(columns=columns_of(sys.stderr)), file=sys.stderr)
