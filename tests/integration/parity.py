"""Compares the C++ runner's answers with the Python runner's, and asks ExecuTorch's."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from llava_runner.contract import PromptTemplate
from llava_runner.session import Session
from training import questions

QUESTIONS = ("What is in the image?", "How many shapes?", "Which color?", "Is it red?", "Where is the circle?", "Why?")
NEAR = 0.1  # a difference of two logits whose deviation is 1


def assert_same_answers(
    llava_main: Sequence[str | Path], program: Path, *, scenes: int, folder: Path, max_new_tokens: int | None = None
) -> None:
    """Ask both runners about ``scenes`` held-out scenes. Fail unless each answer is the same.

    ``llava_main`` is the command of the C++ runner. Images are written to ``folder``. Random weights are to be
    of float32, with a limit: their likely tokens are close to each other, and where activations are quantized, a last
    bit of a sum becomes a tenth of a logit.
    """
    session = Session.load(program)
    for seed in range(questions.HELD_OUT_SEED, questions.HELD_OUT_SEED + scenes):
        image, question, _ = questions.question_for(seed)
        path = folder / "scene.png"
        image.save(path)
        expected = session.ask(path, question, max_new_tokens=max_new_tokens)
        flags = [f"--model_path={program}", f"--image_path={path}", f"--prompt={question}"]
        flags += [] if max_new_tokens is None else [f"--max-new-tokens={max_new_tokens}"]
        done = subprocess.run([*llava_main, *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == expected + "\n", (seed, question)
        assert "prompt eval time" in done.stderr


def clear_length(session: Session, image: Path, question: str, *, new_tokens: int) -> int:
    """Return how many tokens an answer begins with whose likeliest choice is clear.

    Random weights often choose between tokens that are nearly as likely, and then the last bits of sums decide.
    """
    session.ask(image, question, max_new_tokens=new_tokens, logprobs=2)
    likeliest = [token.top for token in session.last.logprobs or ()]
    margins = [first.logprob - second.logprob for first, second in likeliest]
    return next((i for i, margin in enumerate(margins) if margin < NEAR), new_tokens)


def multimodal_pieces(package: Path, template: PromptTemplate, question: str, *, new_tokens: int) -> list[str]:
    """Return the pieces that ExecuTorch's own runner answers to a question about the sample image of a package."""
    from executorch.extension.llm.runner import GenerationConfig, MultimodalRunner, make_image_input, make_text_input

    after = f"{template.image_separator}{question}{template.assistant}"
    image = make_image_input(torch.load(package / "image.pt"))
    inputs = [make_text_input(template.system + template.user), image, make_text_input(after)]
    runner = MultimodalRunner(str(package / "llava.pte"), str(package / "tokenizer.model"), None)
    pieces: list[str] = []
    config = GenerationConfig(max_new_tokens=new_tokens, temperature=0.0, echo=False, num_bos=1)
    runner.generate(inputs, config, pieces.append, None)
    return pieces
