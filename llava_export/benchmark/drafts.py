"""What guessed tokens save: the time of a decoder's call by its rows, and of decoding by how many guesses are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llava_export.benchmark.profile import call_profile, read_events
from llava_export.benchmark.rounds import Contender, Figure, Work, decoding_speed, turns
from llava_runner.contract import TEXT_DECODER

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16)
PERCENTS = (0, 20, 40, 60, 80, 90, 100)
DECODE_TOKENS = 128
ATTENTION_KERNEL = "llama.custom_sdpa"
LINEARS, ATTENTION, REST = "linears", "attention", "the rest"  # the parts of a call
# Tokens a call of LLaVA-7B with a draft of 115 million parameters that sees no image (arXiv 2404.08856). Published are
# 2.37 times fewer reads of weights, those of the draft among them: with 3 to 5 guesses that is 2.49 to 2.56 tokens.
PUBLISHED_TOKENS_A_CALL = 2.5


@dataclass(frozen=True)
class DraftResults:
    """Figures at one depth.

    ``rows`` are milliseconds of a call by its rows, ``rows_ratio`` how many times that of one row, and ``parts`` the
    milliseconds of its parts where operators are traced. ``plain`` is the speed without a draft, in tokens a second,
    ``speed`` that by the percentage with which each guess is right, and ``ratio`` how many times the plain one it is,
    round by round. ``peer`` is the plain speed of a peer, and ``times_peer`` how many times that ``speed`` is. Of
    ``tokens`` in all rounds, ``drafted`` were guessed, ``accepted`` were guessed rightly, and ``changed`` came out
    otherwise than without a draft.
    """

    depth: int
    rows: dict[int, Figure]
    rows_ratio: dict[int, Figure]
    parts: dict[int, dict[str, float]]
    plain: Figure
    speed: dict[int, Figure]
    ratio: dict[int, Figure]
    peer: Figure | None
    times_peer: dict[int, Figure]
    drafted: dict[int, int]
    accepted: dict[int, int]
    changed: dict[int, int]
    tokens: int

    @classmethod
    def of(
        cls,
        rounds: Sequence[Mapping[str, Any]],
        *,
        parts: dict[int, dict[str, float]],
        peers: Sequence[Mapping[str, Any]] = (),
    ) -> DraftResults:
        """Return the figures of rounds, each the JSON of ``llava_bench``, at its last depth. ``peers`` has a peer's."""
        depth = rounds[0]["decode"][-1]["depth"]
        rows = [{each["rows"]: each["ms"] for each in found["rows"] if each["depth"] == depth} for found in rounds]
        drafts = [{each["percent"]: each for each in found["draft"] if each["depth"] == depth} for found in rounds]
        plain = [decoding_speed(found["decode"][-1]) for found in rounds]
        peer = [decoding_speed(found["decode"][-1]) for found in peers]

        def times(speeds: Sequence[float]) -> dict[int, Figure]:
            """Return for each percentage how many times the speeds of the rounds it is."""
            pairs = list(zip(drafts, speeds, strict=True))
            return {
                percent: Figure.of([decoding_speed(each[percent]) / speed for each, speed in pairs])
                for percent in drafts[0]
            }

        def total(name: str) -> dict[int, int]:
            """Return a count of all rounds, by percentage."""
            return {percent: sum(each[percent][name] for each in drafts) for percent in drafts[0]}

        return cls(
            depth=depth,
            rows={count: Figure.of([each[count] for each in rows]) for count in rows[0]},
            rows_ratio={count: Figure.of([each[count] / each[1] for each in rows]) for count in rows[0]},
            parts=parts,
            plain=Figure.of(plain),
            speed=times([1.0] * len(rounds)),
            ratio=times(plain),
            peer=Figure.of(peer) if peer else None,
            times_peer=times(peer) if peer else {},
            drafted=total("drafted"),
            accepted=total("accepted"),
            changed=total("changed"),
            tokens=sum(found["decode"][-1]["tokens"] for found in rounds),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON has them."""
        return asdict(self)


def tokens_a_call(tokens: int, accepted: int) -> float:
    """Return how many tokens a call of the decoder gave, where so many of them were guessed rightly."""
    return tokens / (tokens - accepted)


def measure_drafts(
    contender: Contender,
    work: Work,
    *,
    runs: int,
    peer: Contender | None = None,
    on_round: Callable[[str], None] = lambda name: None,
) -> DraftResults:
    """Run ``runs`` rounds of ``llava_bench``, in turn with a peer's, and one with operators traced.

    Each contender first runs one to warm up. ``on_round`` is called with the name of each round before it begins.
    """
    rounds: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    contenders = [contender, *([peer] if peer else [])]
    for run, each in turns(contenders, work, runs=runs, on_round=on_round):
        if each is contender:
            flags = (f"--rows={_list(ROWS)}", f"--accepted={_list(PERCENTS)}", f"--seed={run}")
            rounds.append(each.measure(work, *flags))
        else:
            peers.append(each.measure(work))
    on_round(f"{contender.name}, traced")
    return DraftResults.of(rounds, parts=trace_rows(contender, work), peers=peers)


def trace_rows(contender: Contender, work: Work) -> dict[int, dict[str, float]]:
    """Return the milliseconds of each part of a decoder's call by its rows, in a round with operators traced."""
    with TemporaryDirectory() as folder:
        short = replace(work, decode_tokens=1)
        timed = contender.measure(short, f"--rows={_list(ROWS)}", f"--etdump-path={folder}")["rows"]
        events = read_events(Path(folder) / f"{TEXT_DECODER}.etdump")
    parts: dict[int, dict[str, float]] = {}
    end: int | None = None  # these calls are the last
    for each in reversed(timed):
        start = (end or 0) - each["calls"]
        found = call_profile(TEXT_DECODER, [events], slice(start, end))
        linears = sum(ms for name, ms in found.delegated.items() if name.startswith("Fully Connected"))
        attention = found.outside.get(ATTENTION_KERNEL, 0.0)
        parts[each["rows"]] = {LINEARS: linears, ATTENTION: attention, REST: found.total - linears - attention}
        end = start
    return dict(reversed(parts.items()))


def _list(numbers: Sequence[int]) -> str:
    """Return numbers as the value of a flag."""
    return ",".join(map(str, numbers))
