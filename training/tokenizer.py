"""A SentencePiece tokenizer for the language of the questions, and conversations as its tokens."""

from __future__ import annotations

import ast
import io
import random
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sentencepiece

from training import questions, scenes

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
NUM_PIECES = 512
BOS, EOS, IMAGE_TOKEN, PAD = 1, 2, NUM_PIECES, NUM_PIECES + 1


def train_tokenizer(*, seed: int) -> bytes:
    """Return a serialized SentencePiece model: a BPE with byte fallback, as Llama has it.

    It is trained on our prompts and answers and on docstrings of the standard library.
    """
    rng = random.Random(seed)
    lines = [SYSTEM, "USER: ASSISTANT:"] * 800  # every prompt repeats them: they shall take few tokens
    for scene_seed in range(600):
        for pairs in questions.ask(scenes.make_layout(scene_seed)).values():
            lines += [f"{question} ASSISTANT: {answer}" for question, answer in pairs]
    english = _docstring_lines()
    lines += rng.sample(english, min(1500, len(english)))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=NUM_PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _docstring_lines() -> list[str]:
    """Return lines of plain English from the standard library, so that words outside our scenes have pieces too."""
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!'\"()-")
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8", errors="ignore"))) or ""
        lines = (" ".join(line.split()) for line in text.splitlines())
        found += [line for line in lines if len(line) > 30 and set(line) <= allowed]
    return found


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that encodes the text before the image and the text after it separately, as the original LLaVA."""

    model: sentencepiece.SentencePieceProcessor
    num_image_tokens: int

    def encode(self, chunk: str, *, dummy_prefix: bool = True) -> list[int]:
        """Return the tokens of a chunk. Without the dummy prefix they do not begin with the piece for a space."""
        if dummy_prefix:
            return _encode(self.model, chunk)
        skipped = _encode(self.model, "\n")
        return _encode(self.model, "\n" + chunk)[len(skipped) :]

    def turn(self, prompt: str, answer: str, *, dummy_prefix: bool = True) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt, which ends in "ASSISTANT:", and those of its answer with the end token."""
        prompt_ids = self.encode(prompt, dummy_prefix=dummy_prefix)
        ids = self.encode(f"{prompt} {answer}", dummy_prefix=dummy_prefix)
        assert ids[: len(prompt_ids)] == prompt_ids, (prompt, answer)
        return prompt_ids, [*ids[len(prompt_ids) :], EOS]

    def prefix(self, *, with_system: bool = True) -> list[int]:
        """Return the tokens up to the image, and one image token for each of the projector's rows."""
        text = f"{SYSTEM} USER: " if with_system else "USER: "
        return [BOS, *self.encode(text)] + [IMAGE_TOKEN] * self.num_image_tokens


@cache
def _encode(model: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """Return the tokens of a text. The same texts come again and again, so they are cached."""
    return model.encode(text)
