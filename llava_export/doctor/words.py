"""Ends and sampling in words, the same for checkpoints and packages."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llava_runner.contract import GenerationDefaults


def ends_text(bos_id: int, eos_ids: Iterable[int], *, spelled: Callable[[int], str]) -> str:
    """Return the tokens that begin a text and end an answer, with their ids. ``spelled`` returns a token's text."""
    begin, *ends = (f"{spelled(i)} ({i})".strip() for i in (bos_id, *eos_ids))
    return f"begins with {begin}, ends with {' or '.join(ends)}"


def sampling_text(generation: GenerationDefaults) -> str:
    """Return how answers are sampled."""
    if generation.temperature > 0:
        how = [f"temperature {generation.temperature:g}", f"top-p {generation.top_p:g}"]
    else:
        how = ["the likeliest token"]
    if generation.top_k:
        how.append(f"top-k {generation.top_k}")
    if generation.min_p:
        how.append(f"min-p {generation.min_p:g}")
    if generation.repetition_penalty != 1:
        how.append(f"repetition penalty {generation.repetition_penalty:g}")
    if generation.max_new_tokens:
        how.append(f"at most {generation.max_new_tokens} tokens")
    return ", ".join(how)
