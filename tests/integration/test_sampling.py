"""Sampling, stop strings, and JSON in C++: as in transformers, and as in the Python runner."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llava_runner.draft import DraftLength, look_up
from llava_runner.logprobs import token_logprobs
from llava_runner.tokenizer_file import AnyTokenizer, load_tokenizer
from tests.byte_level import TEXTS, tokenizer_json
from tests.checkpoints import TINY_LLAVA
from tests.sampling import processed, sampling_cases, stop_cases

Parts = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def parts(native_build) -> Parts:
    """Return a function that calls a part with values in JSON, and returns what it answers to each."""

    def call(*arguments: object, stdin: list[Any]) -> list[dict[str, Any]]:
        lines = "".join(f"{json.dumps(each)}\n" for each in stdin)
        command = [native_build / "build/parts", *map(str, arguments)]
        done = subprocess.run(command, input=lines, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return call


def in_json(logits: np.ndarray) -> list[float | None]:
    """Return logits as JSON can have them."""
    return [float(logit) if np.isfinite(logit) else None for logit in logits]


def test_probabilities_equal_transformers(parts):
    cases = sampling_cases(300)
    asked = [{"logits": in_json(case.logits), "context": case.context, **case.options} for case in cases]
    for case, found in zip(cases, parts("sample", stdin=asked), strict=True):
        expected = processed(case).softmax(-1).numpy()
        assert np.array_equal(np.array(found["probabilities"]) > 0, expected > 0), case
        np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-9, err_msg=str(case))
        assert expected[found["chosen"]] > 0
    greedy = parts("sample", stdin=[{**each, "temperature": 0} for each in asked])
    assert [it["chosen"] for it in greedy] == [int(processed(it, is_greedy=True).argmax()) for it in cases]


def test_an_extreme_penalty_leaves_something_to_choose(parts):
    one = {"logits": [3.0, -2.0, 1.0, 0.0, None], "context": [0, 1, 1, 2, 3, 4, 5, 99], "temperature": 0.5}
    for found in parts("sample", stdin=[{**one, "repetition_penalty": it} for it in (5e-324, 1e-300, 1e300)]):
        assert sum(found["probabilities"]) == pytest.approx(1) and found["probabilities"][4] == 0


def test_samples_follow_the_probabilities(parts):
    one = {"logits": [2.0, 1.0, 0.0, -3.0, 5.0], "context": [4], "temperature": 0.8, "repetition_penalty": 1e9}
    found = parts("sample", stdin=[{**one, "seed": seed} for seed in range(4000)])
    counts = np.bincount([it["chosen"] for it in found], minlength=5)
    np.testing.assert_allclose(counts / 4000, found[0]["probabilities"], atol=0.03)


def test_logprobs_equal_those_of_the_python_runner(parts):
    asked, expected = [], []
    for i, case in enumerate(sampling_cases(100)):
        token_id, count = int(case.logits.argmax()), (0, 1, 5, 1000)[i % 4]
        asked.append({"logits": in_json(case.logits), "id": token_id, "count": count})
        expected.append(token_logprobs(case.logits, token_id, count=count))
    for found, right in zip(parts("logprobs", stdin=asked), expected, strict=True):
        assert (found["id"], [it["id"] for it in found["top"]]) == (right.id, [it.id for it in right.top])
        values = [it["logprob"] for it in (found, *found["top"])]
        np.testing.assert_allclose(values, [it.logprob for it in (right, *right.top)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_answers_stop_where_transformers_stops_them(kind, parts, tiny_package, tmp_path):
    path: Path = tiny_package.folder / "tokenizer.bin"
    theirs: Any = AutoTokenizer.from_pretrained(TINY_LLAVA)
    if kind == "byte-level":
        path = tmp_path / "tokenizer.json"
        path.write_text(tokenizer_json("gpt2"))
        special = [token["content"] for token in json.loads(path.read_text())["added_tokens"]]
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(path), additional_special_tokens=special)
    tokenizer: AnyTokenizer = load_tokenizer(path)
    cases = stop_cases(tokenizer, theirs, texts=[*TEXTS, "A red circle.\n\n"], count=200, seed=4)
    asked = [{"ids": case.ids, "stops": case.stops} for case in cases]
    for case, found in zip(cases, parts("stop", path, stdin=asked), strict=True):
        taken = found["taken"] if found["found"] else None
        assert (taken, "".join(found["pieces"])) == (case.taken, case.shown), case
    assert 20 < sum(case.taken is None for case in cases) < 150


def test_what_cannot_be_a_stop_string(parts, tiny_package):
    asked = [{"ids": [], "stops": stops} for stops in (["a", ""], ["a"] * 17)]
    found = parts("stop", tiny_package.folder / "tokenizer.bin", stdin=asked)
    errors = ["a stop string is empty", "there are 17 stop strings; at most 16 are taken"]
    assert [each["error"] for each in found] == errors


@pytest.mark.parametrize("text", [*TEXTS, "".join(map(chr, range(128))), "\ufffd\U0010ffff\u2028"])
def test_any_text_becomes_json(text, native_build):
    command = [native_build / "build/parts", "json"]
    for stdin in (text.encode(), text.encode()[:-1], b"\xff\xc3(" + text.encode()):
        line = subprocess.run(command, input=stdin, capture_output=True, check=True).stdout
        assert line.isascii() and line.count(b"\n") == 1
        found = json.loads(line)["text"]
        assert found == text if stdin == text.encode() else found.rstrip("\ufffd") in stdin.decode(errors="replace")


def test_guesses_are_those_of_the_python_runner(parts):
    random = np.random.default_rng(0)
    asked = [
        {"ids": random.integers(0, vocab, size).tolist(), "most": int(random.integers(-1, 16))}
        for vocab in (1, 2, 3, 5, 20)
        for size in range(60)
    ]
    found = [each["guess"] for each in parts("look_up", stdin=asked)]
    assert found == [look_up(each["ids"], each["most"]) for each in asked]
    assert sum(map(bool, found)) > 100 and [] in found


def test_guesses_are_as_long_as_in_the_python_runner(parts):
    random = np.random.default_rng(0)
    asked = [{"most": most, "right": (random.integers(0, 3, 90) * 7 // 2).tolist()} for most in range(16)]
    for each, found in zip(asked, parts("draft_length", stdin=asked), strict=True):
        length, lengths = DraftLength(each["most"]), []
        for right in each["right"]:
            lengths.append(guessed := length.next())
            if guessed:
                length.record(guessed=guessed, right=min(guessed, right))
        assert found["lengths"] == lengths
