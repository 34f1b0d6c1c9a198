"""Exact-match accuracy of a package on scenes that no training saw, by question type, beside its checkpoint in float.

    python -m benchmarks.evaluate demo/llava.pte --scenes 200
    python -m benchmarks.evaluate demo/llava.pte --scenes 200 --float tiny-llava

Scene i is the i-th held-out seed of ``training/questions.py``: a question about a rendered image. Answers are compared
as text.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from llava_runner.errors import exit_cleanly
from llava_runner.session import Session
from training import questions

MAX_NEW_TOKENS = 40

Answer = Callable[[Image.Image, str], str]


def session_answers(session: Session) -> Answer:
    """Greedy, one question a fresh context."""
    return lambda image, question: "".join(session.generate(image, question, max_new_tokens=MAX_NEW_TOKENS)).strip()


def package_answers(path: Path) -> Answer:
    """The Python runner on an exported program, greedy."""
    return session_answers(Session.load(path))


def float_answers(model: str, *, package: Path) -> Answer:
    """The checkpoint in float32 through our eager model, with the package's own prompt and preprocessing."""
    import torch

    from llava_export.checkpoint.checkpoint import open_checkpoint
    from llava_runner.program import Program
    from llava_runner.tokenizer import Tokenizer

    checkpoint = open_checkpoint(model)
    card = Program.open(package).card
    eager = checkpoint.build_model(max_context_len=card.max_context_len)
    checkpoint.weights.fill(eager, prefix="")

    class EagerProgram(Program):
        """The three methods of a program, computed by torch."""

        @torch.no_grad()
        def encode_image(self, pixels):
            return eager.vision_encoder(torch.from_numpy(pixels))

        @torch.no_grad()
        def embed(self, input_ids):
            return eager.token_embedding(torch.tensor([input_ids]))

        @torch.no_grad()
        def decode(self, inputs_embeds, *, position):
            return eager.text_decoder(inputs_embeds, torch.tensor([position])).flatten()

    tokenizer = Tokenizer.open(package.parent / "tokenizer.model")
    return session_answers(Session(EagerProgram({}, card=card), tokenizer=tokenizer))


def accuracy(answer: Answer, *, count: int, console: Console, label: str) -> tuple[Counter[str], Counter[str]]:
    """Right answers and questions asked, by question type."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for i in track(range(count), description=label, console=console, transient=True):
        seed = questions.HELD_OUT_SEED + i
        image, question, expected = questions.question_for(seed)
        kind = questions.question_type_for(seed)
        asked[kind] += 1
        right[kind] += answer(image, question) == expected
    return right, asked


def run(arguments: argparse.Namespace) -> int:
    console = Console()
    answers = {str(arguments.package): package_answers(arguments.package)}
    if arguments.float:
        answers[f"{arguments.float} in float32"] = float_answers(arguments.float, package=arguments.package)
    results = {
        label: accuracy(answer, count=arguments.scenes, console=console, label=label)
        for label, answer in answers.items()
    }
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("question")
    for label in results:
        table.add_column(label, justify="right")
    asked = next(iter(results.values()))[1]
    for kind in sorted(asked):
        table.add_row(kind, *(f"{right[kind]} / {asked[kind]}" for right, _ in results.values()))
    totals = {label: right.total() / asked.total() for label, (right, asked) in results.items()}
    table.add_row("all", *(f"{total:.1%}" for total in totals.values()), style="bold")
    console.print(table)
    least = arguments.at_least
    return 1 if least is not None and min(totals.values()) < least else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, metavar="PTE")
    parser.add_argument("--scenes", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--float", metavar="MODEL", help="also ask this checkpoint, in float")
    parser.add_argument("--at-least", type=float, metavar="FRACTION", help="exit with 1 below this accuracy")
    arguments = parser.parse_args()
    exit_cleanly(lambda: run(arguments))


if __name__ == "__main__":
    main()
