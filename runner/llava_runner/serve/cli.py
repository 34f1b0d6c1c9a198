"""The command ``llava serve``: OpenAI's API and a page on a package."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from llava_runner.arguments import (
    ArgumentParser,
    add_draft_model,
    add_engine,
    add_threads,
    path,
    positive_int,
    run_command,
    whole_number,
)
from llava_runner.errors import PromptError, UserError

KEY_VARIABLE = "LLAVA_API_KEY"
LARGEST_PORT = 65535
EPILOG = f"""The page is at the address that is printed, and OpenAI's API below it:
  POST /v1/chat/completions, GET /v1/models, GET /health, GET /metrics

The API key may also be in the environment variable {KEY_VARIABLE}, where other
users of the machine do not see it.

example:
  llava serve package
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "llava serve") -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(prog), run, argv)


def build_parser(prog: str = "llava serve") -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog=prog, description="Open a page and OpenAI's API on a package, for this machine.", epilog=EPILOG
    )
    add = parser.add_argument
    add("package", type=path, metavar="PACKAGE", help="a .pte, or the folder of a package")
    add(
        "--tokenizer-path",
        type=path,
        metavar="PATH",
        help="tokenizer.model, .bin or .json (default: in the folder of the .pte)",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="the address to listen at; 0.0.0.0 stands for all, so that other machines can ask (default: 127.0.0.1)",
    )
    add("--port", type=port, default=8080, metavar="N", help="the port; 0 takes a free one (default: 8080)")
    add("--api-key", metavar="KEY", help=f"what clients must send as bearer token (default: ${KEY_VARIABLE}, or none)")
    add(
        "--allow-remote-images",
        action="store_true",
        help="download images that requests name by http: and https: URLs, from hosts of the public internet alone",
    )
    add_draft_model(parser)
    add_threads(parser)
    add_engine(parser)
    add(
        "--max-requests",
        type=positive_int,
        default=32,
        metavar="N",
        help="most requests that are answered or wait; any more are told to come again (default: 32)",
    )
    add(
        "--max-seconds",
        type=positive_int,
        default=600,
        metavar="N",
        help="most time of a request, from its arrival to the end of its answer (default: 600)",
    )
    add(
        "--saved-mib",
        type=whole_number,
        default=1024,
        metavar="N",
        help="most memory for conversations that others interrupt; 0 saves none (default: 1024 MiB)",
    )
    add(
        "--check",
        action="store_true",
        help="compare all of the program with its manifest first; without it, weights are not compared",
    )
    return parser


def port(text: str) -> int:
    """Return the number of a port. For the ``type`` of an argument: raises ``ArgumentTypeError``."""
    number = whole_number(text)
    if not 0 <= number <= LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"{number} must be from 0 to {LARGEST_PORT}")
    return number


def run(arguments: argparse.Namespace) -> None:
    """Load the package and answer until the process is told to end. Raises a ``UserError`` for the user's mistakes."""
    if arguments.saved_mib < 0:
        raise PromptError("--saved-mib must be 0 or more")
    api_key = arguments.api_key if arguments.api_key is not None else os.environ.get(KEY_VARIABLE) or None
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise PromptError("an API key has printable ASCII characters, without spaces around them")
    try:
        from llava_runner.serve.server import Settings, serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("llava_runner"):
            raise
        raise UserError(f"llava serve needs {error.name}: pip install 'llava-runner[serve]'") from None
    serve(
        arguments.package,
        Settings(
            tokenizer=arguments.tokenizer_path,
            draft_model_path=arguments.draft_model_path,
            host=arguments.host,
            port=arguments.port,
            api_key=api_key,
            allows_remote=arguments.allow_remote_images,
            threads=arguments.threads,
            engine=arguments.engine,
            most_requests=arguments.max_requests,
            seconds=float(arguments.max_seconds),
            saved_bytes=arguments.saved_mib << 20,
            check=arguments.check,
        ),
    )
