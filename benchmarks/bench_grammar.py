"""Asks for JSON of random schemas, checks that the answers are that, and times what it costs."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jsonschema import Draft202012Validator

from benchmarks.random_schemas import KINDS, random_schema
from llava_export.cli.terminal import new_console, plain_table
from llava_runner.answer_options import LogitsProcessor
from llava_runner.arguments import ArgumentParser, positive_int, run_command
from llava_runner.bpe_tokenizer import BpeTokenizer
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import TokenizerRules
from llava_runner.program_file import find_program, find_tokenizer
from llava_runner.serve.grammar import JsonMask, json_grammar, token_table
from llava_runner.serve.grammar_check import check_grammar
from llava_runner.session import Session
from llava_runner.tokenizer import TextStream
from llava_runner.tokenizer_file import load_tokenizer

MOST_TOKENS = 700  # of an answer
CHECKED = 5  # schemas of each kind whose check is timed
QUESTION = "What is in the image?"
# As many logits as the models have that these tokenizers are like; the byte-level ones are padded.
SIZES = {"llava-1.5-7b": 32064, "SmolLM2": 49152, "llava-interleave-qwen-0.5b": 151936}
RULES = TokenizerRules(prepend_scheme="prepend", image_begins_text=True, adds_bos=False, added_tokens=())
DESCRIPTION = """Ask for JSON of random schemas, check the answers, and time it.

The logits are random, for three tokenizers: one like Llama's and one like
Qwen2's, trained here, and SmolLM2's own. With --package they are those of its
program, after a question without an image. Each answer is compared with its
schema by the package jsonschema.
"""
EPILOG = """example:
  python -m benchmarks.bench_grammar --work-dir grammar
  python -m benchmarks.bench_grammar --work-dir grammar --package package
"""
Ask = Callable[[LogitsProcessor, int], str]  # returns the text of an answer that a processor restricts, by a seed


@dataclass(frozen=True)
class Model:
    """A tokenizer, and what answers with its tokens."""

    name: str
    tokenizer: ChatTokenizer
    eos_ids: tuple[int, ...]
    vocab_size: int
    ask: Ask


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.bench_grammar", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--work-dir", type=Path, required=True, help="folder where the tokenizers are kept")
    parser.add_argument("--package", type=Path, help="folder of a package whose program answers")
    parser.add_argument(
        "--schemas", type=positive_int, default=200, metavar="N", help="how many schemas (default: %(default)s)"
    )
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    models = [package_model(arguments.package)] if arguments.package else trained_models(arguments.work_dir)
    rows = {model.name: measure(model, count=arguments.schemas) for model in models}
    table = plain_table("", *rows, right=tuple(rows))
    for name in rows[models[0].name]:
        table.add_row(name, *(row[name] for row in rows.values()))
    new_console().print(table)


def measure(model: Model, *, count: int) -> dict[str, str]:
    """Return a model's figures: times, and how many answers were what was asked for."""
    start = time.perf_counter()
    table = token_table(model.tokenizer, eos_ids=model.eos_ids, vocab_size=model.vocab_size)
    made = (time.perf_counter() - start) * 1e3
    check_grammar.cache_clear()
    checks: list[float] = []
    begins: list[float] = []
    steps: list[float] = []
    valid = 0
    for i in range(count):
        schema = random_schema(list(KINDS)[i % len(KINDS)], seed=i // len(KINDS))
        grammar = json_grammar(schema, may_begin_with_space=not model.tokenizer.is_byte_level)
        if i < CHECKED * len(KINDS):
            timed(check_grammar, checks, time.perf_counter)(grammar)
        mask = timed(JsonMask, begins)(table, grammar)
        valid += is_json_of(schema, model.ask(timed(mask, steps), i))
    return {
        "logits": str(model.vocab_size),
        "table of the tokens, once": f"{made:.0f} ms",
        "check of a new schema": f"{statistics.median(checks):.0f} ms",
        "begin of an answer": f"{statistics.median(begins):.1f} ms",
        "a token, median": f"{statistics.median(steps) * 1e3:.0f} µs",
        "a token, 99th percentile": f"{np.percentile(steps, 99):.1f} ms",
        "a token, most": f"{max(steps):.1f} ms",
        "tokens": str(len(steps)),
        "JSON of the schema": f"{valid} of {count}",
    }


def is_json_of(schema: dict[str, Any], text: str) -> bool:
    """Return True if a text is JSON of a schema, with no space around it. Print it if not."""
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    try:
        if text == text.strip() and validator.is_valid(json.loads(text)):
            return True
    except json.JSONDecodeError:
        pass
    print(f"not JSON of {json.dumps(schema)}: {text!r}")
    return False


def timed(call: Callable[..., Any], times: list[float], clock: Callable[[], float] = time.thread_time) -> Any:
    """Return a function that calls another, and adds how many milliseconds it took.

    By default these are of this thread on a processor: what else the machine does counts little.
    """

    def timed_call(*arguments: Any) -> Any:
        start = clock()
        result = call(*arguments)
        times.append((clock() - start) * 1e3)
        return result

    return timed_call


def random_model(name: str, tokenizer: ChatTokenizer, *, eos_ids: tuple[int, ...], vocab_size: int) -> Model:
    """Return a model whose logits are random."""
    normal = np.random.default_rng(0).standard_normal(2 * vocab_size, dtype=np.float32)

    def ask(process: LogitsProcessor, seed: int) -> str:
        random, stream = np.random.default_rng(seed), TextStream(tokenizer)
        ids: list[int] = []
        text = ""
        while len(ids) < MOST_TOKENS:
            start = random.integers(vocab_size)
            logits = normal[start : start + vocab_size].copy()
            process(ids, logits)
            ids.append(int(logits.argmax()))
            if ids[-1] in eos_ids:
                break
            text += stream.push(ids[-1])
        return text + stream.flush()

    return Model(name, tokenizer, eos_ids, vocab_size, ask)


def trained_models(folder: Path) -> list[Model]:
    """Return a model of random logits for each of the three tokenizers, which are made in a folder if need be."""
    from benchmarks import random_tokenizers, real_llm

    models = []
    for name, vocab_size in SIZES.items():
        own = folder / name
        if not own.exists():
            folder.mkdir(exist_ok=True)
            if name == "SmolLM2":
                real_llm.make_tokenizer(real_llm.download(folder), own)
            else:
                own.mkdir()
                random_tokenizers.write_tokenizer(name, own)
        pieces = load_tokenizer(find_tokenizer(own))
        if isinstance(pieces, BpeTokenizer):
            eos_ids = tuple(i for i, text in pieces.model.added.items() if text in ("<|endoftext|>", "<|im_end|>"))
        else:
            eos_ids = (pieces.eos_id,)
        tokenizer = ChatTokenizer(pieces, rules=RULES, bos_id=1)
        models.append(random_model(name, tokenizer, eos_ids=eos_ids, vocab_size=vocab_size))
    return models


def package_model(folder: Path) -> Model:
    """Return the model of a package. It answers a question without an image."""
    session = Session.load(folder)
    card = session.card

    def ask(process: LogitsProcessor, seed: int) -> str:
        return session.ask(
            None, QUESTION, temperature=1, seed=seed, max_new_tokens=MOST_TOKENS, logits_processor=process
        )

    tokenizer = ChatTokenizer.of(card, load_tokenizer(find_tokenizer(find_program(folder).parent)))
    return Model(card.source, tokenizer, card.eos_ids, card.vocab_size, ask)


if __name__ == "__main__":
    main()
