"""Logits and options of sampling, and what transformers makes of them; token sequences, and where it stops them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import GenerationMixin, StopStringCriteria

from llava_runner.tokenizer import TextStream
from llava_runner.tokenizer_file import AnyTokenizer

INFINITY = float("inf")


@dataclass(frozen=True)
class Case:
    """Logits ``float32 [vocab_size]`` after the tokens of a context, and options of ``Sampler``."""

    logits: np.ndarray
    context: list[int]
    options: dict[str, Any]


class _Generator(GenerationMixin):
    """What puts transformers' processors in their order."""

    config: Any = SimpleNamespace(is_encoder_decoder=False)


def _logits(generator: np.random.Generator, kind: int) -> np.ndarray:
    """Return logits: random ones, ones with ties, with tokens that cannot come, extreme ones, and few."""
    size = (300, 300, 300, 40, 1)[kind % 5]
    logits = generator.standard_normal(size) * 4
    if kind % 5 == 1:
        logits = logits.round()
    elif kind % 5 == 2:
        logits[generator.random(size) < 0.9] = -INFINITY
        logits[7] = 1.0
    elif kind % 5 == 3:
        logits = generator.choice([-3e38, -1e30, -1.0, -0.0, 0.0, 1e-40, 2.5, 2.5000002, 3e38], size)
    return logits.astype(np.float32)


def sampling_cases(count: int) -> list[Case]:
    """Return as many cases. Each option has its default in some of them."""
    choose = random.Random(1)
    cases = []
    for kind in range(count):
        logits = _logits(np.random.default_rng(kind), kind)
        context = choose.choices(range(len(logits) + 5), k=choose.choice((0, 3, 80)))  # some beyond the logits
        options = {
            "temperature": choose.choice((0.2, 0.7, 1.0, 1.7, 30.0)),
            "top_p": choose.choice((1.0, 1.0, 0.999, 0.9, 0.5, 1e-6)),
            "top_k": choose.choice((0, 0, 1, 2, 40, 10**6)),
            "min_p": choose.choice((0.0, 0.0, 1e-3, 0.1, 0.5, 1.0)),
            "repetition_penalty": choose.choice((1.0, 1.0, 1.1, 0.5, 3.0, 1e-3)),
        }
        cases.append(Case(logits, context, options))
    return cases


def processed(case: Case, *, is_greedy: bool = False) -> torch.Tensor:
    """Return the scores ``float64 [vocab_size]`` that transformers' processors make of the logits, in their order.

    Of tokens that are equally likely, the nucleus may need only some. Then those with the largest ids count: sorting
    keeps their order here, while transformers leaves it open.
    """
    settings = GenerationConfig(**{**case.options, "do_sample": not is_greedy})
    generator: Any = _Generator()
    processors = generator._get_logits_processor(settings, input_ids_seq_length=1)
    ids = torch.tensor([case.context], dtype=torch.long)
    with patch("torch.sort", partial(torch.sort, stable=True)):
        found: torch.Tensor = processors(ids, torch.from_numpy(case.logits).double().unsqueeze(0))[0]
    return found


@dataclass(frozen=True)
class Stopped:
    """Token ids, stop strings, after how many ids transformers stops (None: never), and what is shown of them."""

    ids: list[int]
    stops: list[str]
    taken: int | None
    shown: str


def stop_cases(
    tokenizer: AnyTokenizer, theirs: PreTrainedTokenizerBase, *, texts: list[str], count: int, seed: int
) -> list[Stopped]:
    """Return as many cases. The tokens are random or those of ``texts``, and stop strings are mostly parts of them."""
    choose = random.Random(seed)
    ordinary = sorted(set(range(theirs.vocab_size)) - set(theirs.all_special_ids))
    ordinary = [i for i in ordinary if tokenizer.decode_piece(i)]
    in_bytes = [i for i in ordinary if len(tokenizer.decode_piece(i)) == 1]
    cases: list[Stopped] = []
    while len(cases) < count:
        if choose.random() < 0.5:
            ids = tokenizer.encode(choose.choice(texts))
            begin = choose.randrange(len(ids))
            ids = ids[begin : begin + 30]
        else:
            ids = choose.choices(choose.choice((ordinary, in_bytes)), k=choose.randint(1, 20))
        text = raw_text(tokenizer, ids)
        stops = [_part(text, choose) for _ in range(choose.choice((1, 1, 2, 5)))]
        # U+FFFD stands for bytes of no character, and a zero byte is refused.
        stops = [stop for stop in stops if stop and not {"\ufffd", "\0"} & set(stop)]
        if stops:
            taken = _taken(theirs, ids, stops)
            cases.append(Stopped(ids, stops, taken, _shown(tokenizer, ids[:taken], stops)))
    return cases


def _part(text: str, choose: random.Random) -> str:
    """Return a part of a text, or something like it."""
    begin = choose.randrange(len(text) + 1)
    part = text[begin : begin + choose.choice((1, 2, 3, 5, 12))]
    return part if choose.random() < 0.6 else part + choose.choice(("x", part, " ", "é"))


def raw_text(tokenizer: AnyTokenizer, ids: list[int]) -> str:
    """Return the text of ids, with the space at its beginning that is not shown."""
    stream = TextStream(tokenizer)
    texts = [(stream.push(token_id), stream.dropped) for token_id in ids]
    return "".join(dropped + text for text, dropped in texts) + stream.flush()


def _taken(theirs: PreTrainedTokenizerBase, ids: list[int], stops: list[str]) -> int | None:
    """Return after how many tokens transformers stops, or None if it does not."""
    criteria = StopStringCriteria(theirs, stops)
    prefixes = (torch.tensor([ids[:count]]) for count in range(1, len(ids) + 1))
    return next((count for count, prefix in enumerate(prefixes, start=1) if criteria(prefix, None)[0]), None)


def _shown(tokenizer: AnyTokenizer, ids: list[int], stops: list[str]) -> str:
    """Return the text up to the first stop string that is complete, or all of it."""
    text = raw_text(tokenizer, ids)
    dropped = len(text) - len("".join(_streamed(tokenizer, ids)))
    ends = [count for count in range(len(text) + 1) if any(text[:count].endswith(stop) for stop in stops)]
    if not ends:
        return text[dropped:]
    longest = max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))
    return text[dropped : max(dropped, ends[0] - longest)]


def _streamed(tokenizer: AnyTokenizer, ids: list[int]) -> list[str]:
    """Return the text of ids as it is shown."""
    stream = TextStream(tokenizer)
    return [*map(stream.push, ids), stream.flush()]
