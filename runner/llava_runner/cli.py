"""Console script ``llava-run``: one question about an image, the answer streamed, timings at the end."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from llava_runner.errors import exit_cleanly

EXAMPLE = """example:
  llava-run --model_path llava.pte --image_path photo.jpg --prompt "What is in the image?"

The prompt is a plain question; or it ends in the assistant's cue, as in "What is this? ASSISTANT:", and is taken
literally after the system sentence, "USER: " and the image; or it has <image> in it and is taken literally as a whole.
"""


def main(argv: Sequence[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    exit_cleanly(lambda: _run(arguments))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-run",
        description="Ask an exported LLaVA model about an image. The answer goes to stdout, timings to stderr.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model_path", required=True, metavar="PATH", help="the .pte, or the folder of a package with one .pte")
    add("--tokenizer_path", metavar="PATH", help="tokenizer.model or tokenizer.bin (default: beside the .pte)")
    add("--image_path", metavar="PATH", help="a picture, or a .pt with a uint8 [3, H, W] tensor (default: no image)")
    add("--prompt", required=True, help=r"question or prompt, see below; \n in it stands for a new line")
    add("--seq_len", type=int, metavar="N", help="limit of prompt and answer in positions (default: the context)")
    add("--max_new_tokens", type=int, metavar="N", help="limit of the answer in tokens (default: what seq_len leaves)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default: 0)")
    add("--top_p", type=float, default=1.0, metavar="P", help="sample from the likeliest tokens only (default: 1)")
    add("--seed", type=int, metavar="N", help="makes sampling repeatable")
    add(
        "--image_aspect_ratio",
        choices=("pad", "crop"),
        help="make the image square by padding or by cropping (default: as the model was trained)",
    )
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from llava_runner.image import load_image
    from llava_runner.sampler import Sampler
    from llava_runner.session import Session

    # Mistakes in the options or the image are noticed before gigabytes are loaded.
    sampling = {"temperature": arguments.temperature, "top_p": arguments.top_p, "seed": arguments.seed}
    Sampler(**sampling)
    image = load_image(arguments.image_path) if arguments.image_path else None

    session = Session.load(arguments.model_path, tokenizer=arguments.tokenizer_path)
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
