"""JSON of others: typed values, limits, and errors that say where; card and manifest are read with them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from llava_runner.contract import FileRecord, GenerationDefaults, Manifest, ModelCard, signatures
from llava_runner.documents import MAX_BYTES, JsonObject, parse_object, read_object, shown
from llava_runner.errors import PackageError
from tests.runner.fake_program import added_token, make_card

CARD = make_card(vocab_size=20)
MANIFEST = Manifest("a.pte", signatures(CARD), CARD, {"python": "3"}, {"a.pte": FileRecord(3, "0" * 64)}, "0" * 64)
NAN, INFINITY = float("nan"), float("inf")


def document(**fields: Any) -> JsonObject:
    """Return a section of a document."""
    return JsonObject({"part": fields}, what="x.json", error=PackageError).section("part")


def test_values_of_the_right_type_are_returned():
    found = document(a=3, b=[4, 5], c=1, d="x", e=True, f={"g": 2}, h=None, i=[{"j": 1}])
    assert (found.integer("a"), found.integers("b"), found.integers("a"), found.number("c")) == (3, (4, 5), (3,), 1.0)
    assert (found.text("d"), found.flag("e"), found.section("f").integer("g")) == ("x", True, 2)
    assert (found.integer("h", 7), found.text("k", "y"), found.flag("h", False)) == (7, "y", False)
    assert found.sections("i")[0].where("j") == "part.i[0].j in x.json"
    assert dict(found.with_defaults({"h": 1, "a": 9}))["h"] == 1 and found.with_defaults({"a": 9}).integer("a") == 3


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("integer", True), ("integer", 1.0), ("integer", "1"), ("integer", [1]), ("integer", 2**63), ("integers", []),
        ("integers", [1, None]), ("integers", {}), ("number", NAN), ("number", -INFINITY), ("number", 10**400),
        ("number", "0.5"), ("number", False), ("text", 1), ("text", ["x"]), ("flag", 1), ("flag", "true"),
        ("section", []), ("section", "x"), ("sections", [1]), ("sections", {"a": 1}), ("items_of", "abc"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused_with_their_place(method, value):
    with pytest.raises(PackageError, match=r"part.name in x.json is .*; it must be "):
        getattr(document(name=value), method)("name")


def test_ranges_and_missing_values_are_named():
    with pytest.raises(PackageError, match=r"part.a in x.json is 9; it must be a whole number from 1 to 8"):
        document(a=9).integer("a", least=1, most=8)
    with pytest.raises(PackageError, match=r"part in x.json lacks a, which must be a text"):
        document().text("a")


def test_errors_are_short_however_large_the_value():
    assert len(shown("x" * 10**6)) < 100 and len(shown([list(range(10**5))] * 1000)) < 300
    assert len(shown(10**4000)) < 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5, "nested too deep"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested too deep"),
        (" " * (MAX_BYTES + 1), "at most"),
        ("3", "does not hold a JSON object"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
    ],
)
def test_documents_are_read_within_limits(text, message):
    with pytest.raises(PackageError, match=f"the card .*{message}"):
        parse_object(text, what="the card", error=PackageError)


def test_what_is_no_file_is_said(tmp_path):
    for path, message in ((tmp_path, "is not a file"), (tmp_path / "nothing", "does not exist")):
        with pytest.raises(PackageError, match=message):
            read_object(path, error=PackageError)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in items for place in places(item, (*at, key)))][0 if at else 1 :]


@pytest.mark.parametrize("odd", [None, [], {}, [[1]], {"a": {}}, NAN, True, -1, 2**70])
@pytest.mark.parametrize("kind", [ModelCard, Manifest])
def test_cards_and_manifests_with_a_value_of_another_kind_are_refused(kind, odd):
    """Every value is replaced in turn. It is refused, or it has the type of the value and may stand there."""
    content = json.loads((CARD if kind is ModelCard else MANIFEST).to_json())
    accepted = []
    for place in places(content):
        changed = json.loads(json.dumps(content))
        holder = changed
        for key in place[:-1]:
            holder = holder[key]
        before, holder[place[-1]] = holder[place[-1]], odd
        try:
            assert kind.from_json(json.dumps(changed)) is not None
        except PackageError:
            continue
        accepted.append((place[-1], before))
    for name, before in accepted:
        may_be_empty = name in ("recipe", "methods", "versions") and odd == {}
        may_be_empty |= name == "added_tokens" and odd == []
        is_flag = type(before) is type(odd) is bool
        in_recipe = (name == "name" and odd in (-1, {})) or (name == "recipe" and odd == {"a": {}})
        assert may_be_empty or is_flag or in_recipe, (name, before, odd)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 0}, {"image_size": 60_000}, {"vocab_size": 0}, {"tokenizer_vocab_size": 0},
        {"tokenizer_vocab_size": 21}, {"bos_id": 20}, {"bos_id": -1}, {"eos_ids": []}, {"eos_ids": [2, 20]},
        {"image_std": [0.2, 0.2, 0]}, {"image_mean": [2, 0, 0]}, {"image_aspect_ratio": "square"},
        {"image_resize": 27}, {"image_resize": 4096}, {"image_resample": "area"}, {"image_resample": []},
        {"max_context_len": 0}, {"max_seq_len": 0}, {"num_image_tokens": -1}, {"hidden_size": 2**40}, {"schema": True},
        {"schema": 1.0}, {"image_mean": [0.5, 0.5]}, {"prompt": {"system": ""}}, {"unknown": 1},
        {"tokenizer": {**asdict(CARD.tokenizer), "prepend_scheme": "last"}},
        {"tokenizer": {**asdict(CARD.tokenizer), "added_tokens": [asdict(added_token(20, "[A]"))]}},
        {"tokenizer": {**asdict(CARD.tokenizer), "added_tokens": [asdict(added_token(i, "[A]")) for i in (3, 4)]}},
        {"tokenizer": {**asdict(CARD.tokenizer), "added_tokens": [asdict(added_token(3, ""))]}},
        {"generation": {"temperature": -1.0, "top_p": 1.0, "max_new_tokens": 5}},
        {"generation": {"temperature": 1.0, "top_p": 0.0, "max_new_tokens": 5}},
        {"generation": {**asdict(CARD.generation), "top_k": -1}},
        {"generation": {**asdict(CARD.generation), "top_k": 1.0}},
        {"generation": {**asdict(CARD.generation), "min_p": 1.5}},
        {"generation": {**asdict(CARD.generation), "repetition_penalty": 0}},
        {"generation": {**asdict(CARD.generation), "repetition_penalty": 101}},
        {"generation": {**asdict(CARD.generation), "typical_p": 0.5}},
    ],
)  # fmt: skip
def test_cards_of_no_model_are_refused(change):
    with pytest.raises(PackageError):
        ModelCard.from_json(json.dumps({**asdict(CARD), **change}))
    with pytest.raises(PackageError):
        Manifest.from_json(json.dumps({**asdict(MANIFEST), "card": {**asdict(CARD), **change}}))


@pytest.mark.parametrize("name", ["../b", "/etc/passwd", "", ".", "..", "a/b", "a\\b", "a\0"])
def test_a_manifest_names_files_of_its_folder_alone(name):
    content = asdict(MANIFEST)
    content["files"][name] = asdict(FileRecord(3, "0" * 64))
    with pytest.raises(PackageError, match="not the name of a file in the package"):
        Manifest.from_json(json.dumps(content))


@pytest.mark.parametrize(
    "record", [{"bytes": -1, "sha256": "0" * 64}, {"bytes": 1, "sha256": "0" * 63}, {"bytes": 1, "sha256": "G" * 64}]
)
def test_a_manifest_has_sizes_and_checksums(record):
    content = {**asdict(MANIFEST), "files": {"a.pte": record}}
    with pytest.raises(PackageError, match="cannot be one"):
        Manifest.from_json(json.dumps(content))


def test_a_manifest_records_its_program():
    with pytest.raises(PackageError, match=r"no record of its program, 'b.pte'"):
        Manifest.from_json(json.dumps({**asdict(MANIFEST), "program": "b.pte"}))


def test_optional_fields_are_written_where_they_say_something():
    plain, full = CARD.generation, GenerationDefaults(0.5, 0.9, 7, top_k=50, min_p=0.1, repetition_penalty=1.1)
    for generation, names in ((plain, {"temperature", "top_p", "max_new_tokens"}), (full, asdict(full).keys())):
        card = replace(CARD, generation=generation)
        manifest = replace(MANIFEST, card=card)
        assert ModelCard.from_json(card.to_json()) == card and Manifest.from_json(manifest.to_json()) == manifest
        assert json.loads(card.to_json())["generation"].keys() == names
        assert json.loads(manifest.to_json())["card"] == json.loads(card.to_json())
        assert ModelCard.from_json(json.dumps(asdict(card))) == card


def test_cards_and_manifests_come_back():
    assert ModelCard.from_json(CARD.to_json()) == CARD and Manifest.from_json(MANIFEST.to_json()) == MANIFEST
