"""The time of each operator in a call, inside XNNPACK's delegates and outside, by ExecuTorch's event tracer."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llava_export.benchmark.rounds import Contender, Work
from llava_runner import contract

EXECUTE = "Execute"  # the Inspector's name for the events of calls; those of loading have another
METHOD = "Method::execute"  # the event of a whole call
KERNEL_PREFIX = "native_call_"
TOP = 8  # operators that are shown by name


@dataclass(frozen=True)
class CallProfile:
    """The time of one kind of call, in milliseconds.

    ``total`` is the whole call and ``delegates`` all calls of delegates in it. ``delegated`` has the time by XNNPACK's
    operator, ``outside`` by kernel, and ``instructions`` by the instruction's number in the method.
    """

    name: str
    total: float
    delegated: dict[str, float]
    outside: dict[str, float]
    delegates: float
    instructions: dict[int, float]

    def parts(self) -> list[tuple[str, float]]:
        """Return ``total`` divided by operator, the longest first, in milliseconds.

        Time that no operator took is "calling delegates" or "runtime".
        """
        in_delegates, outside = sum(self.delegated.values()), sum(self.outside.values())
        parts = {**self.delegated, **self.outside}
        parts["calling delegates"] = max(0.0, self.delegates - in_delegates)
        parts["runtime"] = max(0.0, self.total - self.delegates - outside)
        return sorted(parts.items(), key=lambda part: -part[1])

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON has it."""
        return {
            "name": self.name,
            "total": self.total,
            "delegates": self.delegates,
            "delegated": self.delegated,
            "outside": self.outside,
        }


def short(operator: str) -> str:
    """Return an operator's name with its quantized types alone: ``Fully Connected QD8 QB4W``.

    XNNPACK says ``Fully Connected (NC, QD8, F32, QB4W) GEMM``. Kernels keep their names.
    """
    name, bracket, rest = operator.partition(" (")
    types = [part.strip() for part in rest.partition(")")[0].split(",")]
    return " ".join([name, *(part for part in types if part.startswith("Q"))]) if bracket else name


def profile(
    contender: Contender, work: Work, *, runs: int, on_round: Callable[[str], None] = lambda name: None
) -> list[CallProfile]:
    """Return profiles of image encoding, of embedding and prefill of the prompt, and of decoding a token after it.

    ``runs`` rounds are traced after one to warm up. The prompt must fit into one call, and its end must be the only
    depth. ``on_round`` is called with the name of each round before it begins.
    """
    assert work.depths == (work.prompt_tokens,), work
    on_round(f"{contender.name}, warming up")
    contender.warm_up(work)
    rounds = []
    for run in range(runs):
        on_round(f"{contender.name}, traced, round {run + 1} of {runs}")
        with TemporaryDirectory() as folder:
            contender.round(work, f"--etdump-path={folder}")
            rounds.append({name: read_events(Path(folder) / f"{name}.etdump") for name in contract.METHODS})

    def calls(method: str, name: str, which: slice) -> CallProfile:
        """Return the profile of some calls of a method."""
        return call_profile(name, [traced[method] for traced in rounds], which)

    first, later = slice(0, 1), slice(1, None)
    decoder, embedding = contract.TEXT_DECODER, contract.TOKEN_EMBEDDING
    return [
        calls(contract.VISION_ENCODER, contract.VISION_ENCODER, first),
        calls(embedding, f"{embedding}, the prompt's text", first),
        calls(decoder, f"{decoder}, prefill of {work.prompt_tokens}", first),
        calls(decoder, f"{decoder}, one token at depth {work.prompt_tokens}", later),
    ]


def read_events(path: Path) -> list[Any]:
    """Return the Inspector's events of the one method that was traced to ``path``."""
    from executorch.devtools import Inspector

    (events,) = (block.events for block in Inspector(etdump_path=str(path)).event_blocks if block.name == EXECUTE)
    return list(events)


def call_profile(name: str, rounds: Sequence[Sequence[Any]], which: slice) -> CallProfile:
    """Return the profile of the calls ``which`` in each round. ``rounds`` are the same events of several processes.

    The times are means over the middle half of those calls, ordered by their total. Medians would not add up to the
    total, and plain means would follow outliers.
    """
    events = rounds[0]
    calls = [call for each in rounds for call in _calls(each)[which]]
    totals = [sum(spent for event, spent in zip(events, call, strict=True) if event.name == METHOD) for call in calls]
    order = sorted(range(len(calls)), key=totals.__getitem__)
    cut = (len(order) + 1) // 4
    middle = [calls[index] for index in order[cut : len(order) - cut]]
    delegated: defaultdict[str, float] = defaultdict(float)
    outside: defaultdict[str, float] = defaultdict(float)
    instructions: dict[int, float] = {}
    kernels: dict[int, str] = {}
    total = delegates = 0.0
    for event, *times in zip(events, *middle, strict=True):
        spent, index = statistics.fmean(times), event._instruction_id
        if event.name == METHOD:
            total = spent
        elif event.name == "DELEGATE_CALL":
            delegates += spent
            instructions[index] = spent
        elif event.name == "OPERATOR_CALL":
            outside[kernels.get(index, "aliases and sizes")] += spent
            instructions[index] = spent
        elif event.is_delegated_op:
            delegated[event.name.split(" #")[0]] += spent
        else:  # a kernel, inside the OPERATOR_CALL that follows
            kernels[index] = event.name.removeprefix(KERNEL_PREFIX).split(".")[0].replace("::", ".")
    return CallProfile(name, total, delegated, outside, delegates, instructions)


def _calls(events: Sequence[Any]) -> list[tuple[float, ...]]:
    """Return the time of each event in each call of the method, in milliseconds."""
    count = max(len(event.perf_data.raw) for event in events if event.perf_data)
    times = [event.perf_data.raw if event.perf_data else [0.0] * count for event in events]
    return list(zip(*times, strict=True))
