from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.bench_grammar import Model, is_json_of, random_model
from benchmarks.random_schemas import KINDS, random_schema
from llava_runner.bpe_tokenizer import BpeTokenizer
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import TokenizerRules
from llava_runner.errors import PromptError
from llava_runner.serve import grammar_check
from llava_runner.serve.grammar import JsonMask, json_grammar, json_processor, token_table
from tests.byte_level import tokenizer_json
from tests.runner.fake_program import PLAIN_RULES, added_token

PADDING = 10  # rows of the logits that are no tokens
AB = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": [True, None]}}, "required": ["a"]}


@pytest.fixture(params=["sentencepiece", "byte_level"])
def model(request) -> Model:
    """Return random logits for a tokenizer of a kind. Two tokens end answers."""
    if request.param == "sentencepiece":
        tokenizer = ChatTokenizer(request.getfixturevalue("tokenizer"), rules=PLAIN_RULES, bos_id=1)
        eos_ids = (2, tokenizer.vocab_size - 1)
    else:
        pieces = BpeTokenizer.from_json(tokenizer_json("smollm2"))
        ends = {text: i for i, text in pieces.model.added.items()}
        added = (added_token(ends["<repo_name>"], "<repo_name>"),)  # text, in spite of its looks
        rules = TokenizerRules(prepend_scheme="never", image_begins_text=False, adds_bos=False, added_tokens=added)
        tokenizer = ChatTokenizer(pieces, rules=rules, bos_id=1)
        eos_ids = (ends["<|im_end|>"], ends["<|endoftext|>"])
    vocab_size = tokenizer.vocab_size + PADDING
    return random_model(request.param, tokenizer, eos_ids=eos_ids, vocab_size=vocab_size)


@pytest.fixture
def after(model) -> Callable[..., list[int]]:
    """Return a function that tells which tokens may come after a text, which is written in single characters."""
    ids = {model.tokenizer.decode_piece(i): i for i in range(model.vocab_size)}

    def allowed(text: str, schema: dict[str, Any] | None = None) -> list[int]:
        process = processor(model, schema)
        written = [ids[bytes([byte])] for byte in text.encode()]
        logits = np.zeros(model.vocab_size, dtype=np.float32)
        for end in range(len(written) + 1):
            logits[:] = 0
            process(written[:end], logits)
        return np.flatnonzero(logits == 0).tolist()

    return allowed


def processor(model: Model, schema: dict[str, Any] | None) -> JsonMask:
    return json_processor(model.tokenizer, eos_ids=model.eos_ids, vocab_size=model.vocab_size, schema=schema)


def texts(model: Model, ids: list[int]) -> set[str]:
    return {model.tokenizer.decode_piece(i).decode(errors="replace") for i in ids}


@pytest.mark.parametrize("kind", KINDS)
def test_random_tokens_make_json_of_the_schema(model, kind):
    table = token_table(model.tokenizer, eos_ids=model.eos_ids, vocab_size=model.vocab_size)
    for seed in range(6):
        schema = random_schema(kind, seed=seed)
        grammar = json_grammar(schema, may_begin_with_space=not model.tokenizer.is_byte_level)
        assert is_json_of(schema, model.ask(JsonMask(table, grammar), seed))


def test_an_answer_ends_when_the_json_is_whole_and_not_before(model, after):
    for text in ("", "{", '{"a": 1', '{"a": 1, "b": tru'):
        assert not set(after(text, AB)) & set(model.eos_ids), text
    assert set(after('{"a": 1}', AB)) == set(model.eos_ids)


def test_without_a_schema_any_object_may_come_but_nothing_else(model, after):
    assert {text.strip()[:1] for text in texts(model, after(""))} <= {"{", ""}
    assert {'"', "}"} <= texts(model, after("{"))
    assert set(after('{"x": [1, {}, "y", null]}')) == set(model.eos_ids)


def test_only_the_first_token_of_sentencepiece_may_begin_with_a_space(model, after):
    """``TextStream`` drops that space."""
    begins = texts(model, after("", {"type": "boolean"}))
    assert (" " in begins) == (model.name == "sentencepiece")
    assert "  " not in begins and "\n" not in begins


def test_no_space_is_allowed_but_one_behind_a_comma_or_a_colon(model, after):
    for text, allows in (("{", False), ('{"a":', True), ('{"a": ', False), ('{"a": 1', False), ('{"a": 1,', True)):
        assert (" " in texts(model, after(text, AB))) == allows, text
        assert "\n" not in texts(model, after(text, AB))


def test_tokens_without_text_of_their_own_are_never_allowed(model, after):
    inside = after('{"', None)
    assert len(inside) > 100
    assert max(inside) < model.tokenizer.vocab_size
    assert not set(inside) & set(model.eos_ids)
    assert all(model.tokenizer.decode_piece(i) for i in inside)
    assert not any(model.tokenizer.is_unknown(i) for i in inside)
    assert ("<repo_name>" in texts(model, inside)) == (model.name == "byte_level")


def test_byte_pieces_stand_only_for_bytes_that_have_no_other_piece(tokenizer):
    chat = ChatTokenizer(tokenizer, rules=PLAIN_RULES, bos_id=1)
    process = json_processor(chat, eos_ids=(2,), vocab_size=chat.vocab_size, schema={"type": "string"})
    logits = np.zeros(chat.vocab_size, dtype=np.float32)
    quote = next(i for i in range(chat.vocab_size) if chat.decode_piece(i) == b'"' and chat.is_byte(i))
    process([quote], logits)
    allowed = np.flatnonzero(logits == 0)
    others = {chat.decode_piece(i) for i in range(chat.vocab_size) if not chat.is_byte(i)}
    as_bytes = {chat.decode_piece(i) for i in allowed if chat.is_byte(i)}
    assert as_bytes and not as_bytes & others
    assert {byte[0] for byte in as_bytes if byte[0] >= 0x80} == set(range(0xC2, 0xF5))  # that begin a character


def test_a_model_that_rules_out_what_has_to_come_writes_it_all_the_same(model):
    process = processor(model, {"const": True})
    logits = np.full(model.vocab_size, -np.inf, dtype=np.float32)
    process([], logits)
    assert np.isfinite(logits).any() and texts(model, np.flatnonzero(np.isfinite(logits)).tolist()) <= {" ", "t", " t"}


def test_a_schema_may_refer_to_itself(model, after):
    tree = {"type": "object", "properties": {"value": {"const": 1}, "left": {"$ref": "#"}}, "required": ["value"]}
    assert set(after('{"value": 1, "left": {"value": 1, "left": {"value": 1}}}', tree)) == set(model.eos_ids)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([], "must be an object"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": object()}, "not JSON"),
        ({"const": "\ud800"}, "cannot be used"),
        ({"type": "text"}, "Invalid type: text"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf constraints are not supported$"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "^(?=a)"}, "look-around"),
        ({"type": "string", "format": "iban"}, "Unknown format: iban"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "Unsatisfiable"),
        ({"$ref": "#"}, "nothing that fits it can come next"),
        ({"$ref": "https://example.org/schema.json"}, "not present"),
        ({"$ref": "file:///etc/passwd"}, "not present"),
        ({"enum": ["x" * 100] * 1000}, "at most 65536 are read"),
        (
            {"type": "object", "properties": {f"p{i}": {} for i in range(2600)}},
            "Current row has [0-9]+ items; max is 10000$",
        ),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_a_schema_that_cannot_be_followed_is_refused(tokenizer, schema, message):
    chat = ChatTokenizer(tokenizer, rules=PLAIN_RULES, bos_id=1)
    with pytest.raises(PromptError, match=message):
        json_processor(chat, eos_ids=(2,), vocab_size=chat.vocab_size, schema=schema)


def test_a_schema_that_is_too_deep_for_the_stack_ends_only_the_process_that_tries_it(tokenizer):
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1500)} | {"d1500": {"type": "integer"}}
    refused({"$defs": chain, "$ref": "#/$defs/d0"}, match="nested too deeply")
    lists: dict[str, Any] = {}
    for _ in range(5000):
        lists = {"items": lists}
    refused(lists, match="too deep")


def test_a_schema_that_takes_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(grammar_check, "SECONDS", 2)
    patterns = [{"type": "string", "pattern": f"a{i}.*b"} for i in range(30)]
    refused({"allOf": patterns}, match="more than 2 seconds|memory")


def test_a_check_that_fails_for_another_reason_does_not_blame_the_schema(monkeypatch):
    monkeypatch.setattr(grammar_check, "CODE", "import nothing_of_this_name")
    with pytest.raises(RuntimeError, match="nothing_of_this_name"):
        grammar_check.check_grammar("a grammar")


def refused(schema: dict[str, Any], *, match: str) -> None:
    with pytest.raises(PromptError, match=match):
        grammar_check.check_grammar(json_grammar(schema, may_begin_with_space=False))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 10**9},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "pattern": "^((((a{1,100}){1,100}){1,100}){1,100}){1,100}$"},
        {"enum": [f"value {i}" for i in range(2000)]},
        {"type": "object", "additionalProperties": {"$ref": "#"}},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_large_bounds_and_wild_patterns_take_little_time(model, schema):
    times = []
    process = processor(model, schema)
    random = np.random.default_rng(0)
    ids: list[int] = []
    while len(ids) < 200 and (not ids or ids[-1] not in model.eos_ids):
        logits = random.standard_normal(model.vocab_size, dtype=np.float32)
        start = time.thread_time()
        process(ids, logits)
        times.append(time.thread_time() - start)
        ids.append(int(logits.argmax()))
    assert max(times) < 1


@pytest.mark.parametrize("model", ["byte_level"], indirect=True)
def test_a_pattern_that_becomes_too_complex_within_an_answer_is_refused_there(after):
    schema = {"type": "string", "pattern": "^(.*a.{300}|.*b.{299}|.*c.{211})$"}
    text = '"' + "".join(np.random.default_rng(0).choice(list("abc"), 2000))
    assert after(text[:100], schema)
    with pytest.raises(PromptError, match=r"cannot be followed after \d+ tokens: .* too many states"):
        after(text, schema)
