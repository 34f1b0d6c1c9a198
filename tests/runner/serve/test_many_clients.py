"""Many clients at a time, a third of which go away. ``python -m benchmarks.serve_clients`` asks for longer."""

from __future__ import annotations

from benchmarks.serve_clients import Clients
from tests.runner.serve.conftest import CONTEXT


def test_every_answer_that_is_waited_for_is_right(make_live):
    live = make_live(max_context_len=CONTEXT)
    result = Clients(live.url, images=2, max_tokens=8).run(clients=20, requests=200)
    assert result.counts.keys() == {"right", "cut off"}
    assert result.counts["right"] > 100 and result.counts["cut off"] > 40
    assert result.is_good
