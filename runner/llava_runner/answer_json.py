"""An answer as one line of JSON, in the shape that the C++ runner writes, too."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from llava_runner.answer import Answer
from llava_runner.timings import Timings


def answer_json(answer: Answer) -> str:
    """Return an answer that has ended as one line of ASCII: text, ids, stop reason, timings, draft, logprobs."""
    found: dict[str, Any] = {
        "text": answer.text,
        "ids": answer.ids,
        "stop_reason": answer.stop_reason,
        "timings": _timings(answer.timings),
        "draft": {"drafted": answer.timings.drafted, "accepted": answer.timings.accepted},
    }
    if answer.logprobs is not None:
        found["logprobs"] = [dataclasses.asdict(token) for token in answer.logprobs]
    return json.dumps(found, separators=(",", ":"))


def _timings(timings: Timings) -> dict[str, float | int]:
    """Return milliseconds and counts of each stage. Times are rounded to microseconds."""
    found: dict[str, float | int] = {"load_ms": round(timings.load.ms, 3)}
    for name in ("image", "prompt", "sample", "eval"):
        stage = getattr(timings, name)
        found |= {f"{name}_ms": round(stage.ms, 3), f"{name}_tokens": stage.count}
    return {**found, "total_ms": round(timings.total_ms, 3)}
