"""Stop strings: where an answer ends, what is shown of it, and what is held back on the way."""

from __future__ import annotations

import json
import random

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llava_runner.bpe_tokenizer import BpeTokenizer
from llava_runner.errors import PromptError
from llava_runner.stop_strings import StopStrings
from llava_runner.tokenizer import TextStream
from llava_runner.tokenizer_file import load_tokenizer
from tests.byte_level import TEXTS, tokenizer_json
from tests.checkpoints import TINY_LLAVA
from tests.sampling import stop_cases

SENTENCES = [*TEXTS, "The image shows a blue circle, a red triangle and a purple square. There are three shapes.\n\n"]


def streamed(stops, tokenizer, ids):
    """Return the pieces that are shown of ids, and how many ids are taken until a stop string is found, or None."""
    stream, pieces = TextStream(tokenizer), []
    for taken, token_id in enumerate(ids, start=1):
        text = stream.push(token_id)
        pieces.append(stops.push(text, hidden=stream.dropped))
        if stops.found:
            return pieces, taken
    return [*pieces, stops.finish(stream.flush())], None


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_answers_stop_where_transformers_stops_them(kind, tmp_path):
    if kind == "sentencepiece":
        tokenizer, theirs = load_tokenizer(TINY_LLAVA / "tokenizer.model"), AutoTokenizer.from_pretrained(TINY_LLAVA)
    else:
        document = json.loads(tokenizer_json("gpt2"))
        tokenizer = BpeTokenizer.from_json(json.dumps(document))
        (tmp_path / "tokenizer.json").write_text(json.dumps(document))
        special = [token["content"] for token in document["added_tokens"]]
        theirs = PreTrainedTokenizerFast(
            tokenizer_file=str(tmp_path / "tokenizer.json"), additional_special_tokens=special
        )
    cases = stop_cases(tokenizer, theirs, texts=SENTENCES, count=200, seed=3)
    for case in cases:
        pieces, taken = streamed(StopStrings(case.stops), tokenizer, case.ids)
        assert (taken, "".join(pieces)) == (case.taken, case.shown), case
    assert 20 < sum(case.taken is None for case in cases) < 150


def test_text_is_shown_as_soon_as_it_is_no_beginning_of_a_stop_string():
    """Compared with trying every place, on texts that overlap with themselves."""
    choose = random.Random(2)
    found = 0
    for _ in range(2000):
        text = "".join(choose.choices("ab", k=choose.randint(0, 12)))
        stops = ["".join(choose.choices("ab", k=choose.randint(1, 5))) for _ in range(choose.randint(0, 3))]
        strings, come, shown = StopStrings(stops), "", ""
        while text and not strings.found:
            size = choose.randint(0, len(text))
            come, text = come + text[:size], text[size:]
            shown += strings.push(come[len(come) - size :])
            ends = [end for end in range(len(come) + 1) if come[:end].endswith(tuple(stops) or ("x",))]
            if ends:
                longest = max(len(stop) for stop in stops if come[: ends[0]].endswith(stop))
                assert strings.found and shown == come[: ends[0] - longest]
            else:
                held = max(
                    (n for stop in stops for n in range(len(stop)) if come.endswith(stop[:n])),
                    default=0,
                )
                assert not strings.found and shown == come[: len(come) - held]
        if not strings.found:
            assert shown + strings.finish("") == come
        found += strings.found
    assert 500 < found < 1900


def test_the_space_that_is_not_shown_may_begin_a_stop_string():
    strings = StopStrings(" The end")
    assert strings.push("The", hidden=" ") == "" and strings.push(" e") == "" and not strings.found
    assert strings.push("nd.") == "" and strings.found
    strings = StopStrings(" The end")
    assert [strings.push("The", hidden=" "), strings.push(" cat"), strings.finish("")] == ["", "The cat", ""]


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ("", "a stop string is empty"),
        (["a", ""], "a stop string is empty"),
        (["a"] * 17, "there are 17 stop strings; at most 16 are taken"),
        ([3], "a stop string is int, and must be text"),
        (3, "a stop string is int, and must be text"),
        (b"a", "a stop string is bytes, and must be text"),
        ("a\udc80", "a stop string is not valid Unicode at character 1"),
        (["a", "ü\0"], "a stop string has a zero byte, at byte 2"),
    ],
    ids=repr,
)
def test_what_cannot_be_a_stop_string(stop, message):
    with pytest.raises(PromptError, match=f"^{message}$"):
        StopStrings(stop)
