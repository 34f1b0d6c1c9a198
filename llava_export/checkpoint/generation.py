"""Which tokens begin a conversation and end an answer, and how the model's authors sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from llava_export.checkpoint.documents import object_in
from llava_export.config import NONE, LlavaConfig, check_token_ids
from llava_export.errors import CheckpointError
from llava_runner.contract import MAX_CONTEXT, MAX_PENALTY, MAX_TEMPERATURE, MAX_VOCAB, GenerationDefaults

GENERATION_CONFIG = "generation_config.json"
TOP_K = 50  # transformers' default where it samples


@dataclass(frozen=True)
class SpecialIds:
    """The token that begins a conversation, and those that end an answer. ``notes`` says where files disagree."""

    bos_id: int
    eos_ids: tuple[int, ...]
    notes: tuple[str, ...]


def special_ids(path: Path | None, *, config: LlavaConfig, tokenizer: CheckpointTokenizer) -> SpecialIds:
    """Return the special ids of a checkpoint. ``path`` is its ``generation_config.json``, if it has one.

    Any id that ``config.json``, ``generation_config.json`` or the tokenizer ends an answer with does. But where
    ``config.json`` has another beginning than the tokenizer, as configs from before 2023 do, its ids are those of
    another tokenizer. Where texts begin with no token, one may also end an answer. Raises ``CheckpointError`` for ids
    that are not in the vocabulary.
    """
    bos_id, eos_ids = tokenizer.bos_id if config.bos_id == NONE else config.bos_id, config.eos_ids
    generation = object_in(path)
    own = generation.integers("eos_token_id", ()) if generation.get("eos_token_id") is not None else ()
    if own:
        check_token_ids(f"{GENERATION_CONFIG}: eos_token_id", *own, vocab_size=config.text.vocab_size)
    of_tokenizer = [tokenizer.eos_id] if tokenizer.eos_id >= 0 else []
    notes = []
    if tokenizer.bos_id not in (NONE, bos_id) and (own or of_tokenizer):
        notes.append(
            f"config.json begins a text with the id {bos_id} and ends it with {_listed(eos_ids)}; the tokenizer's are "
            f"{tokenizer.bos_id} and {_listed(of_tokenizer or own)}, which are used"
        )
        bos_id, eos_ids = tokenizer.bos_id, ()
    ends = list(dict.fromkeys((*eos_ids, *own, *of_tokenizer)))
    if not ends:
        raise CheckpointError("no token ends an answer: config.json and the tokenizer's files name no eos_token")
    special = {token.id for token in tokenizer.rules.added_tokens if token.special}
    if tokenizer.rules.adds_bos or tokenizer.needs_bos:
        if bos_id == NONE:
            raise CheckpointError("no token begins a text: config.json and the tokenizer's files name no bos_token")
        ends = [i for i in ends if i != bos_id]
        if not ends:
            raise CheckpointError(f"the token that ends an answer, {bos_id}, also begins a text")
    elif bos_id not in special:
        bos_id = ends[0]  # nothing begins with it, but some programs ask for one
    return SpecialIds(bos_id, tuple(ends), tuple(notes))


def generation_defaults(path: Path | None) -> GenerationDefaults:
    """Return how answers are sampled by a ``generation_config.json``, if there is one.

    Raises ``CheckpointError`` for odd values.
    As in transformers, a repetition penalty counts always, and temperature, top-k, top-p and min-p where ``do_sample``
    is true; otherwise answers are greedy.
    """
    settings = object_in(path)
    samples = settings.flag("do_sample", False)
    found = GenerationDefaults(
        temperature=settings.number("temperature", 1.0) if samples else 0.0,
        top_p=settings.number("top_p", 1.0) if samples else 1.0,
        max_new_tokens=settings.integer("max_new_tokens", 0, least=0, most=MAX_CONTEXT),
        top_k=min(settings.integer("top_k", TOP_K, least=0), MAX_VOCAB) if samples else 0,
        min_p=settings.number("min_p", 0.0) if samples else 0.0,
        repetition_penalty=settings.number("repetition_penalty", 1.0),
    )
    if not 0 <= found.temperature <= MAX_TEMPERATURE:
        raise settings.wrong("temperature", f"from 0 to {MAX_TEMPERATURE:g}")
    if not 0 < found.top_p <= 1:
        raise settings.wrong("top_p", "above 0, at most 1")
    if not 0 <= found.min_p <= 1:
        raise settings.wrong("min_p", "from 0 to 1")
    if not 0 < found.repetition_penalty <= MAX_PENALTY:
        raise settings.wrong("repetition_penalty", f"above 0, at most {MAX_PENALTY:g}")
    return found


def _listed(ids: Sequence[int]) -> str:
    """Return ids as text."""
    return " and ".join(map(str, ids))
