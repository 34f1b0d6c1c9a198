"""The command ``python -m llava_runner.bench``: time the stages of an answer, at lengths that the flags give.

It prints one line of JSON. ``llava_bench``, its counterpart in C++, has the same flags and prints the same fields.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from llava_runner.arguments import ArgumentParser, add_image_and_threads, depths, path, positive_int, run_command
from llava_runner.errors import PackageError, PromptError

if TYPE_CHECKING:
    from llava_runner.contract import ModelCard
    from llava_runner.timings import Stage

DEFAULT_PROMPT_TOKENS = 600
DEFAULT_TEXT_TOKENS = 24  # at least, beside an image


def main() -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(), lambda arguments: print(json.dumps(run(arguments))), None)


def build_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog="python -m llava_runner.bench",
        description="Time a package: load, image, prefill, and decode at several depths.\n"
        "The result is one line of JSON.",
    )
    add = parser.add_argument
    add("--model-path", required=True, type=path, metavar="PATH", help="a .pte, or the folder of a package")
    add_image_and_threads(parser, image_help="an image file, or a .pt file with a tensor (default: no image)")
    add(
        "--prompt-tokens",
        type=positive_int,
        metavar="N",
        help="positions of the prompt and its image together (default: 600, and at least 24 beside the image)",
    )
    add(
        "--decode-tokens",
        type=positive_int,
        default=32,
        metavar="N",
        help="tokens to decode at each depth (default: 32)",
    )
    add(
        "--depth",
        type=depths,
        default=(0, 600),
        metavar="N,N,...",
        help="positions in the KV cache when decoding begins (default: 0,600)",
    )
    add("--etdump-path", type=path, metavar="DIR", help="also trace every operator, and write DIR/METHOD.etdump")
    return parser


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what is printed. Raises a ``UserError`` for files that cannot be used and lengths that do not fit."""
    import torch

    from llava_runner.image import load_image, prepare_image_for
    from llava_runner.program import Program
    from llava_runner.program_file import find_program
    from llava_runner.timings import Stage

    if arguments.etdump_path and not arguments.etdump_path.is_dir():
        raise PackageError(f"--etdump-path {arguments.etdump_path} is not a folder")
    load, image, prompt = Stage(), Stage(), Stage()
    loaded = None
    if arguments.image:
        with image.measure(0):
            loaded = load_image(arguments.image)  # a mistake here is found before gigabytes are loaded
    with load.measure(0):
        program_path = find_program(arguments.model_path)
        trace = arguments.etdump_path is not None
        program = Program.open(program_path, cpu_threads=arguments.threads, trace=trace)
    card = program.card
    if arguments.prompt_tokens is None:
        arguments.prompt_tokens = default_prompt_tokens(card.num_image_tokens if arguments.image else 0)
    check_room(arguments, card)

    features = []
    if loaded is not None:
        with image.measure(card.num_image_tokens):
            features = [program.encode_image(prepare_image_for(card, loaded))]
    with prompt.measure(arguments.prompt_tokens):
        text = program.embed(some_ids(arguments.prompt_tokens - image.count, card))
        rows = torch.cat([text[:, :1], *features, text[:, 1:]], dim=1)
        token = int(program.decode(rows, position=0).argmax())

    depth_in_cache = arguments.prompt_tokens
    decodings = {}
    for depth in arguments.depth:
        if depth > depth_in_cache:
            program.decode(program.embed(some_ids(depth, card)), position=0)
        depth_in_cache = max(depth, depth_in_cache)
        stage = Stage()
        for i in range(arguments.decode_tokens):
            with stage.measure():
                token = int(program.decode(program.embed([token]), position=depth + i).argmax())
        decodings[depth] = stage
    if trace:
        program.write_traces(arguments.etdump_path)
    return measured(load=load, image=image, prompt=prompt, decodings=decodings)


def measured(*, load: Stage, image: Stage, prompt: Stage, decodings: Mapping[int, Stage]) -> dict[str, Any]:
    """Return what is printed: times in milliseconds, memory in bytes. ``decodings`` has a stage for each depth.

    The peak memory is the VmHWM of this process, as in ``Timings.report``.
    """
    from llava_runner.timings import anonymous_memory, peak_memory

    return {
        "load_ms": load.ms,
        "image_ms": image.ms,
        "prompt_tokens": prompt.count,
        "prompt_ms": prompt.ms,
        "decode": [{"depth": depth, "tokens": stage.count, "ms": stage.ms} for depth, stage in decodings.items()],
        "peak_bytes": peak_memory() or 0,
        "anonymous_bytes": anonymous_memory() or 0,
    }


def default_prompt_tokens(num_image_tokens: int) -> int:
    """Return the positions of a prompt with an image of so many: with the 576 of LLaVA-1.5 they are 600."""
    return max(DEFAULT_PROMPT_TOKENS, num_image_tokens + DEFAULT_TEXT_TOKENS)


def check_room(arguments: argparse.Namespace, card: ModelCard) -> None:
    """Raise ``PromptError`` for lengths that do not fit into the context."""
    context, tokens = card.max_context_len, arguments.decode_tokens
    least = card.num_image_tokens + 1 if arguments.image else 1
    if not least <= arguments.prompt_tokens <= context:
        raise PromptError(f"prompt_tokens {arguments.prompt_tokens}: it must be from {least} to the context, {context}")
    for depth in arguments.depth:
        if not 0 <= depth <= context - tokens:
            raise PromptError(f"depth {depth} and {tokens} decoded tokens do not fit into the context of {context}")


def some_ids(count: int, card: ModelCard) -> list[int]:
    """Return some token ids. Times do not depend on which tokens they are."""
    return [(i * 7919 + card.bos_id) % card.tokenizer_vocab_size for i in range(count)]


if __name__ == "__main__":
    main()
