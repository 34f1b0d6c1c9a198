"""``python -m llava_runner.bench``: the stages of an answer timed one by one, at lengths that are asked for.

A line of JSON on stdout, the same that ``llava_bench``, its counterpart in C++, prints for the same flags.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llava_runner.arguments import ArgumentParser, positive_int, run_command
from llava_runner.errors import PromptError

if TYPE_CHECKING:
    from llava_runner.contract import ModelCard
    from llava_runner.timings import Stage


def main() -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(), lambda arguments: print(json.dumps(run(arguments))), None)


def build_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog="python -m llava_runner.bench",
        description="Time an exported LLaVA model: load, image, prompt, and decoding behind so many positions.",
    )
    add = parser.add_argument
    add("--model-path", required=True, type=Path, metavar="PATH", help="the .pte, or the folder with one .pte")
    add("--image", "--image-path", type=Path, metavar="PATH", help="an image (default: none)")
    add("--prompt-tokens", type=int, default=600, metavar="N", help="positions of the prompt, the image's among them")
    add("--decode-tokens", type=int, default=32, metavar="N", help="tokens to decode at each depth")
    add(
        "--depth", type=depths, default=(0, 600), metavar="N,N,...", help="positions in the cache where decoding begins"
    )
    add(
        "--threads",
        "--cpu-threads",
        type=positive_int,
        metavar="N",
        help="threads to compute with (default: the machine's fast cores)",
    )
    add("--etdump-path", type=Path, metavar="DIR", help="also trace every operator, to DIR/METHOD.etdump")
    return parser


def depths(text: str) -> tuple[int, ...]:
    return tuple(int(depth) for depth in text.split(","))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times in milliseconds, memory in bytes. Raises a ``UserError`` for lengths that do not fit."""
    import torch

    from llava_runner.image import prepare_image
    from llava_runner.program import Program
    from llava_runner.program_file import find_program
    from llava_runner.timings import Stage

    load, image, prompt = Stage(), Stage(), Stage()
    with load.measure(0):
        path = find_program(arguments.model_path)
        trace = arguments.etdump_path is not None
        program = Program.open(path, cpu_threads=arguments.threads, trace=trace)
    card = program.card
    check_room(arguments, card)

    features = []
    if arguments.image:
        with image.measure(card.num_image_tokens):
            pixels = prepare_image(
                arguments.image,
                image_size=card.image_size,
                image_mean=card.image_mean,
                image_aspect_ratio=card.image_aspect_ratio,
            )
            features = [program.encode_image(pixels)]
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
    """What is printed; ``decodings`` by depth. Memory is that of this process."""
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


def check_room(arguments: argparse.Namespace, card: ModelCard) -> None:
    context, tokens = card.max_context_len, arguments.decode_tokens
    least = card.num_image_tokens + 1 if arguments.image else 1
    if not least <= arguments.prompt_tokens <= context:
        raise PromptError(f"prompt_tokens {arguments.prompt_tokens}: it must be from {least} to the context, {context}")
    if tokens < 1:
        raise PromptError(f"decode_tokens {tokens}: it must be at least 1")
    for depth in arguments.depth:
        if not 0 <= depth <= context - tokens:
            raise PromptError(f"depth {depth} and {tokens} decoded tokens do not fit into the context of {context}")


def some_ids(count: int, card: ModelCard) -> list[int]:
    """Any tokens: none of what is timed depends on which."""
    return [(i * 7919 + card.bos_id) % card.tokenizer_vocab_size for i in range(count)]


if __name__ == "__main__":
    main()
