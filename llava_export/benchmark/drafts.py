"""What guessed tokens save: the time of a decoder's call by its rows, and of decoding by how many guesses are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llava_export.benchmark.rounds import Contender, Figure, Work, decoding_speed

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
PERCENTS = (0, 20, 40, 60, 80, 100)
DECODE_TOKENS = 128


@dataclass(frozen=True)
class DraftResults:
    """Figures at one depth.

    ``rows`` are milliseconds of a call by its rows, and ``rows_ratio`` how many times that of one row. ``plain`` is the
    speed without a draft, in tokens a second, ``speed`` that by the percentage of guesses that are right, and ``ratio``
    how many times the plain one it is, round by round. Of ``drafted`` tokens ``accepted`` were right, in a round.
    ``changed`` tokens of all rounds came out otherwise than without a draft.
    """

    depth: int
    rows: dict[int, Figure]
    rows_ratio: dict[int, Figure]
    plain: Figure
    speed: dict[int, Figure]
    ratio: dict[int, Figure]
    drafted: dict[int, int]
    accepted: dict[int, int]
    changed: dict[int, int]
    tokens: int

    @classmethod
    def of(cls, rounds: Sequence[Mapping[str, Any]]) -> DraftResults:
        """Return the figures of rounds, each the JSON of ``llava_bench``, at its last depth."""
        depth = rounds[0]["decode"][-1]["depth"]
        rows = [{each["rows"]: each["ms"] for each in found["rows"] if each["depth"] == depth} for found in rounds]
        drafts = [{each["percent"]: each for each in found["draft"] if each["depth"] == depth} for found in rounds]
        plain = [decoding_speed(found["decode"][-1]) for found in rounds]

        def by_percent(value: Callable[[Mapping[str, Any], float], float]) -> dict[int, Figure]:
            """Return a figure for each percentage. ``value`` gets what was measured, and the plain speed."""
            pairs = list(zip(drafts, plain, strict=True))
            return {percent: Figure.of([value(each[percent], speed) for each, speed in pairs]) for percent in drafts[0]}

        return cls(
            depth=depth,
            rows={count: Figure.of([each[count] for each in rows]) for count in rows[0]},
            rows_ratio={count: Figure.of([each[count] / each[1] for each in rows]) for count in rows[0]},
            plain=Figure.of(plain),
            speed=by_percent(lambda each, _: decoding_speed(each)),
            ratio=by_percent(lambda each, plain: decoding_speed(each) / plain),
            drafted={percent: each["drafted"] for percent, each in drafts[0].items()},
            accepted={percent: each["accepted"] for percent, each in drafts[0].items()},
            changed={percent: sum(each[percent]["changed"] for each in drafts) for percent in drafts[0]},
            tokens=sum(found["decode"][-1]["tokens"] for found in rounds),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON has them."""
        return asdict(self)


def measure_drafts(
    contender: Contender, work: Work, *, runs: int, on_round: Callable[[str], None] = lambda name: None
) -> DraftResults:
    """Run ``runs`` rounds of ``llava_bench`` after one to warm up.

    ``on_round`` is called with the name of each round before it begins.
    """
    on_round(f"{contender.name}, warming up")
    contender.warm_up(work)
    flags = [f"--{name}={','.join(map(str, values))}" for name, values in (("rows", ROWS), ("accepted", PERCENTS))]
    rounds = []
    for run in range(runs):
        on_round(f"{contender.name}, round {run + 1} of {runs}")
        rounds.append(contender.measure(work, *flags))
    return DraftResults.of(rounds)
