"""Log probabilities against torch's log-softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_runner.logprobs import token_logprobs
from tests.sampling import sampling_cases


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_logprobs_are_those_of_torch(count):
    for case in sampling_cases(50):
        logits = torch.from_numpy(case.logits).double()
        expected = logits.log_softmax(-1)
        token_id = int(logits.argmax())
        found = token_logprobs(case.logits, token_id, count=count)
        assert found.id == token_id and found.logprob == pytest.approx(float(expected[token_id]), abs=1e-12)
        possible = int((expected > -torch.inf).sum())
        assert len(found.top) == min(count, possible)
        order = torch.sort(logits, descending=True, stable=True).indices.tolist()
        assert [token.id for token in found.top] == order[: len(found.top)]
        values = expected[order[: len(found.top)]].numpy()
        np.testing.assert_allclose([token.logprob for token in found.top], values, rtol=1e-12, atol=1e-12)
