"""Checkpoints with other prompts and tokens, and conversations to ask them, as transformers' processor spells them."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.prompt import find_prompt, stop_ids
from llava_runner.contract import ModelCard
from tests.chat_templates import TEMPLATES
from tests.checkpoints import TINY_LLAVA
from tests.runner.fake_program import make_card

FIRST_NEW_ID = 514  # after the tokens of tiny-llava, whose vocabulary is padded to 576 rows
WORDS = (
    "What", "is", "the", "color", "of", "it?", "USER:", "ASSISTANT:", "[INST]", "🙂", "👩‍👩‍👧", "e\u0301",
    "是在", "\n", "\n\n", "  ", "\t", "▁", "▁x", "Grüße", "1,234.5", "<image", "image>", "|end|>", "[SEG]", "\u00a0",
    "\u3000", "'quoted'", "{{x}}",
)  # fmt: skip
QUESTIONS = ("hi", " leading space", "   three", "trailing \n", "\nline first", "▁", " ", "a\x1fb", "\u00a0x\u00a0")


def with_template(folder: Path, name: str, *, prepend_scheme: str = "first", rstrip: bool = False) -> Path:
    """Make a copy of tiny-llava that has a template of ``TEMPLATES``, with its special tokens. Return the folder."""
    shutil.copytree(TINY_LLAVA, folder)
    template, specials = TEMPLATES[name]
    (folder / "chat_template.jinja").write_text(template)
    flags = {"single_word": False, "lstrip": False, "normalized": False}
    tokens = [{"content": it, "special": True, "rstrip": rstrip, **flags} for it in specials]
    tokens.append({"content": "[SEG]", "special": False, "rstrip": False, **flags})
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"] += [{"id": FIRST_NEW_ID + i, **token} for i, token in enumerate(tokens)]
    if prepend_scheme == "prepend":
        tokenizer["pre_tokenizer"] = None
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    else:
        tokenizer["pre_tokenizer"]["prepend_scheme"] = prepend_scheme
    path.write_text(json.dumps(tokenizer))
    return folder


def card_of(folder: Path, *, prompt_template: str | None = None) -> tuple[ModelCard, bytes]:
    """Return the card that an export of a checkpoint has, as far as its text goes, and its SentencePiece model."""
    checkpoint = open_checkpoint(str(folder))
    prompt = find_prompt(checkpoint, given=prompt_template)
    card = make_card(
        vocab_size=checkpoint.config.text.vocab_size,
        prompt=prompt.template,
        rules=checkpoint.tokenizer.rules,
        eos_ids=stop_ids(prompt, checkpoint),
        tokenizer_vocab_size=checkpoint.tokenizer.vocab_size,
    )
    return card, checkpoint.tokenizer.files["tokenizer.model"]


@dataclass(frozen=True)
class Asked:
    """A question of a conversation with its answer."""

    question: str
    has_image: bool
    answer: str


def conversations(count: int, *, seed: int) -> list[list[Asked]]:
    """Return conversations of one to five turns, of odd text."""
    generator = random.Random(seed)
    words = partial(generator.choices, WORDS)

    def question() -> str:
        chosen = (
            generator.choice(QUESTIONS) if generator.random() < 0.2 else generator.choice(("", " ")).join(words(k=5))
        )
        return chosen if chosen.strip() else chosen + "?"

    return [
        [
            Asked(question(), generator.random() < 0.5, f"A{''.join(words(k=3)).strip()}.")
            for _ in range(generator.randint(1, 5))
        ]
        for _ in range(count)
    ]


def processor_ids(processor: Any, turns: list[Asked], *, num_image_tokens: int) -> list[int]:
    """Return the ids that transformers' processor makes of a conversation, one id for each image."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        content = [{"type": "image"}] if turn.has_image else []
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": turn.question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    text = processor.apply_chat_template(messages[:-1], add_generation_prompt=True)
    images = [np.zeros((112, 112, 3), np.uint8) for turn in turns if turn.has_image]
    bos = processor.tokenizer.bos_token
    ids = processor(text=text, images=images or None, add_special_tokens=not text.startswith(bos))["input_ids"][0]
    ids = list(map(int, ids))
    image = processor.image_token_id
    kept = [i for at, i in enumerate(ids) if i != image or (at == 0 or ids[at - 1] != image)]
    assert len(ids) - len(kept) == len(images) * (num_image_tokens - 1)
    return kept
