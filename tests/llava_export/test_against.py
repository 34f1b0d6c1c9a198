"""What a package says of prompt, tokens and ends is compared with its checkpoint."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.families.prompts import MISTRAL
from llava_export.pte.against import described_otherwise
from llava_runner.contract import TokenizerRules
from tests.conversations import card_of, with_template


def rules(card: Any, **changes: Any) -> TokenizerRules:
    return replace(card.tokenizer, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda card: {}, None),
        (
            lambda card: {"prompt": MISTRAL.template, "eos_ids": (2,)},
            r"prompt is not that from chat_template.jinja: its system is '', not '<\\|im_st",
        ),
        (
            lambda card: {"prompt": MISTRAL.template, "prompt_source": "--prompt-template mistral", "eos_ids": (2,)},
            None,
        ),
        (lambda card: {"eos_ids": (2,)}, r"ends an answer with \[2\], the checkpoint with \[2, 515\]"),
        (lambda card: {"tokenizer": rules(card, prepend_scheme="always")}, "rules about spaces"),
        (lambda card: {"tokenizer": rules(card, added_tokens=card.tokenizer.added_tokens[:-1])}, "added tokens"),
    ],
)
def test_what_a_package_says_otherwise_than_its_checkpoint(changes, message, tmp_path):
    folder = with_template(tmp_path / "model", "chatml")
    card, _ = card_of(folder)
    found = described_otherwise(replace(card, **changes(card)), open_checkpoint(str(folder)))
    assert len(found) == (message is not None)
    assert message is None or re.search(message, found[0])
