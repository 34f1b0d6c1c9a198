"""Compares the tokens and the prompt in a GGUF file with its checkpoint's."""

from __future__ import annotations

from gguf import GGUFReader, TokenType

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.prompt import GIVEN, find_prompt
from llava_export.gguf.comparison import FileComparison, value
from llava_export.gguf.text import PROMPT_SOURCE, chat_template
from llava_export.gguf.vocabulary import begins_with, token_types
from llava_runner.documents import shown

ADD_BOS = "tokenizer.ggml.add_bos_token"
END_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


def compare_tokens(comparison: FileComparison, reader: GGUFReader, *, checkpoint: Checkpoint) -> None:
    """Compare the tokens of a file with the checkpoint's: their texts, their types, and which end an answer."""
    expected = token_types(checkpoint.tokenizer, vocab_size=checkpoint.config.text.vocab_size)
    texts, types = (value(reader, f"tokenizer.ggml.{name}", list) for name in ("tokens", "token_type"))
    if len(texts) != len(expected) or len(types) != len(expected):
        comparison.fail(f"has {len(texts)} tokens, and the checkpoint {len(expected)}")
        return
    found = zip(texts, types, strict=True)
    wrong = [i for i, (it, (text, _, kind)) in enumerate(zip(found, expected, strict=True)) if it != (text, kind)]
    if wrong:
        i = wrong[0]
        comparison.fail(
            f"token {i} is {shown(texts[i])}, {_kind(types[i])}, and {shown(expected[i][0])}, {_kind(expected[i][2])}, "
            f"in the checkpoint ({len(wrong)} tokens differ)"
        )
    ends = {value(reader, key, int) for key in END_KEYS if key in reader.fields}
    if missing := set(checkpoint.config.eos_ids[: len(END_KEYS)]) - ends:
        comparison.fail(f"does not end an answer at {', '.join(map(str, sorted(missing)))}, as the checkpoint does")
    if value(reader, "tokenizer.ggml.bos_token_id", int) != checkpoint.config.bos_id:
        comparison.fail(f"begins a text with another token than the checkpoint, {checkpoint.config.bos_id}")


def compare_prompt(comparison: FileComparison, reader: GGUFReader, *, checkpoint: Checkpoint) -> None:
    """Compare a file's chat template, and whether a text begins with a token, with the checkpoint's.

    Both may be others where another prompt was asked for, and the template where it has a date.
    """
    source = reader.fields[PROMPT_SOURCE].contents() if PROMPT_SOURCE in reader.fields else ""
    if isinstance(source, str) and source.startswith(GIVEN):
        return
    prompt = find_prompt(checkpoint)
    bos, adds_bos = begins_with(checkpoint.tokenizer, bos_id=checkpoint.config.bos_id, system=prompt.template.system)
    expected = chat_template(prompt.chat, bos=bos)
    if value(reader, ADD_BOS, bool) != adds_bos:
        comparison.fail(f"{ADD_BOS} is {not adds_bos}, and {adds_bos} in the checkpoint")
    if not prompt.chat.is_dated and value(reader, "tokenizer.chat_template", str) != expected:
        comparison.fail(f"its chat template makes other prompts than the checkpoint's, which are from {prompt.source}")


def _kind(kind: int) -> str:
    """Return the word for a type of token."""
    return TokenType(kind).name.lower() if kind in list(TokenType) else f"of the type {kind}"
