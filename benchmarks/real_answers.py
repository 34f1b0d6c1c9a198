"""Compares what programs and GGUF files of a real language model say with what transformers says, in float32.

The checkpoint is that of ``benchmarks.real_llm``. Programs answer questions, each token the likeliest, in the Python
runner and in the C++ runner. Of a GGUF file, llama.cpp reads the beginnings of paragraphs, and its likeliest next
token counts.
"""

from __future__ import annotations

import argparse
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from benchmarks.ask_llama_cpp import only_file
from llava_export.benchmark.llama_cpp import LlamaCpp
from llava_export.cli.terminal import new_console, plain_table, silence_libraries
from llava_runner import Session
from llava_runner.arguments import ArgumentParser, run_command
from llava_runner.errors import UserError

# Facts, lists and small tasks, such as a model of this size was tuned for.
QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Japan?",
    "Which planet is the largest?",
    "What is water made of?",
    "Name three fruits.",
    "How many legs does a spider have?",
    "What color is the sky on a clear day?",
    "Who wrote Romeo and Juliet?",
    "What do bees make?",
    "What is the opposite of hot?",
    "Translate good morning to French.",
    "What is 7 plus 5?",
    "Name the seasons of the year.",
    "What is the freezing point of water?",
    "What does a compass show?",
    "Which animal is called the king of the jungle?",
    "What is photosynthesis?",
    "Why do we sleep?",
    "Write one sentence about the sea.",
    "What is a noun?",
    "How do plants drink?",
    "What is the longest river in the world?",
    "Give me a name for a cat.",
    "What is a prime number?",
    "Which language is spoken in Brazil?",
    "What is the sun?",
    "How many days are in a leap year?",
    "What is gravity?",
    "Who was Albert Einstein?",
    "What is the boiling point of water in Fahrenheit?",
)
LENGTHS = (4, 8, 16, 24)  # tokens of an answer, counted from its beginning
MAX_NEW_TOKENS = max(LENGTHS)
END = "\0"  # in no answer
CONTINUED = "The capital of France is"  # as the beginning of an answer
NUM_PARAGRAPHS = 50
PARAGRAPH_TOKENS = 64  # of its beginning
DESCRIPTION = """Compare answers of a real language model with transformers' in float32.

--package names packages that llava export wrote from CHECKPOINT, and --gguf
folders that llava gguf wrote from it. llama.cpp takes llama-cpp-python.
"""
EPILOG = """example:
  python -m benchmarks.real_llm --work-dir smollm2
  llava export --model smollm2/checkpoint --recipe 8da8w --output-dir smollm2/8da8w --with-artifacts
  llava gguf --model smollm2/checkpoint --output-dir smollm2/gguf --quantization f16
  python -m benchmarks.real_answers --work-dir smollm2 --package smollm2/8da8w --gguf smollm2/gguf
"""


class Reference:
    """The checkpoint in transformers."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def prompt(self, question: str) -> str:
        """Return a question as the model reads it."""
        messages = [{"role": "user", "content": question}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    @torch.no_grad()
    def answer(self, prompt: str) -> list[str]:
        """Return the beginnings of the likeliest answer to a prompt that have ``LENGTHS``, without special tokens.

        Behind an answer that ends before is ``END``.
        """
        ids = torch.tensor([self.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        found = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_NEW_TOKENS
        )
        new = found[0, ids.shape[1] :]
        return [
            str(self.tokenizer.decode(new[:length], skip_special_tokens=True)) + (END if len(new) < length else "")
            for length in LENGTHS
        ]

    @torch.no_grad()
    def next_token(self, ids: list[int]) -> int:
        """Return the likeliest token after some."""
        return int(self.model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1].argmax())


def run(arguments: argparse.Namespace) -> None:
    """Compare, and print tables. Raises ``UserError``."""
    silence_libraries()
    console = new_console()
    checkpoint: Path = arguments.work_dir / "checkpoint"
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint} is missing: python -m benchmarks.real_llm makes it")
    reference = Reference(checkpoint)
    if arguments.package:
        prompts = [reference.prompt(question) for question in QUESTIONS]
        expected = [reference.answer(prompt) for prompt in prompts]
        begun = reference.prompt(CONTINUED) + CONTINUED
        lengths = [f"{length} tokens" for length in LENGTHS]
        table = plain_table("package", "runner", *lengths, f"{CONTINUED} ...", right=lengths)
        console.print(f"answers of {len(QUESTIONS)} that begin with the same tokens, by how many")
        for package in arguments.package:
            with Session.load(package) as session:
                answers = {"Python": partial(ask_session, session)}
                if arguments.llava_main:
                    answers["C++"] = partial(ask_llava_main, arguments.llava_main, package)
                for runner, answer in answers.items():
                    found = [answer(question, MAX_NEW_TOKENS) for question in QUESTIONS]
                    table.add_row(str(package), runner, *_same(found, expected), answer(begun, 1))
        console.print(table)
    if arguments.gguf:
        counts = ("same tokens of a text", "same likeliest next token")
        table = plain_table("GGUF", *counts, right=counts)
        for folder in arguments.gguf:
            table.add_row(str(folder), *compare_gguf(folder, arguments.work_dir / "development.txt", reference))
        console.print(table)


def ask_session(session: Session, prompt: str, tokens: int) -> str:
    """Return what the Python runner answers."""
    return session.ask(None, prompt, max_new_tokens=tokens, temperature=0)


def ask_llava_main(llava_main: Path, package: Path, prompt: str, tokens: int) -> str:
    """Return what the C++ runner answers. Raises ``UserError`` if it fails."""
    (program,) = package.glob("*.pte")
    command = [llava_main, f"--model-path={program}", f"--prompt={prompt}", f"--max-new-tokens={tokens}"]
    done = subprocess.run([*map(str, command), "--temperature=0"], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{llava_main} fails: {done.stderr.strip()}")
    return done.stdout.removesuffix("\n")


def compare_gguf(folder: Path, text: Path, reference: Reference) -> tuple[str, str]:
    """Return for how many paragraphs llama.cpp has the tokens, and the likeliest next token, of transformers."""
    language, mmproj = (only_file(folder, f"{kind}-model-*.gguf") for kind in ("ggml", "mmproj"))
    llama = LlamaCpp(language, mmproj, n_ctx=2 * PARAGRAPH_TOKENS)
    paragraphs = [it for it in text.read_text(encoding="utf-8").split("\n\n") if len(it) > 6 * PARAGRAPH_TOKENS]
    chosen = [paragraphs[i] for i in np.linspace(0, len(paragraphs) - 1, NUM_PARAGRAPHS).astype(int)]
    same_tokens = same_next = 0
    for paragraph in chosen:
        ids = reference.tokenizer(paragraph, add_special_tokens=False)["input_ids"]
        same_tokens += llama.llama.tokenize(paragraph.encode(), add_bos=False) == ids
        llama.forget()
        same_next += int(llama.decode(ids[:PARAGRAPH_TOKENS]).argmax()) == reference.next_token(ids[:PARAGRAPH_TOKENS])
    return f"{same_tokens} / {NUM_PARAGRAPHS}", f"{same_next} / {NUM_PARAGRAPHS}"


def _same(found: list[str], expected: list[list[str]]) -> list[str]:
    """Return how many answers begin as expected, for each of ``LENGTHS``."""
    return [
        str(sum((answer + END).startswith(begins[i]) for answer, begins in zip(found, expected, strict=True)))
        for i in range(len(LENGTHS))
    ]


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.real_answers", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, metavar="DIR", help="folder that benchmarks.real_llm filled")
    add("--package", type=Path, action="append", default=[], metavar="DIR", help="a package; may be repeated")
    add(
        "--gguf",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with GGUF files; may be repeated",
    )
    add("--llava-main", type=Path, metavar="PATH", help="the C++ runner, to ask it, too")
    run_command(parser, run, None)


if __name__ == "__main__":
    main()
