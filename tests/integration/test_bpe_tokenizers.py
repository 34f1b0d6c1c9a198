"""Byte-level BPE in the C++ runner, against the library ``tokenizers``: the same ids, texts, and refusals."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from llava_runner.contract import AddedToken as Added
from llava_runner.contract import PromptTemplate, TokenizerRules
from tests.bpe_boundaries import NAMES, SCRIPTS, boundary_tokenizer, random_texts, save, trained
from tests.runner.fake_program import make_card


@pytest.fixture(scope="module")
def parts(native_build) -> Callable[..., str]:
    """A function that runs one part of the C++ runner. It returns the output, or ``refused:`` and the error."""

    def call(*arguments: object, stdin: str = "") -> str:
        command = [native_build / "build/parts", *map(str, arguments)]
        done = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=60)
        if done.returncode == 0:
            return done.stdout.decode()
        error = done.stderr.decode()
        assert done.returncode == 2 and error.startswith("error: ") and error.count("\n") == 1, error
        return error.replace("error: ", "refused: ", 1)

    return call


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory) -> tuple[Tokenizer, Path]:
    """A trained tokenizer, and the path of its file."""
    tokenizer = trained(request.param)
    return tokenizer, save(tokenizer, tmp_path_factory.mktemp("bpe"))


def encoded(parts: Callable[..., str], path: Path, texts: list[str]) -> list[list[int]]:
    """Return the ids of texts in the C++ runner."""
    lines = parts("encode", path, stdin="".join(f"{text}\0" for text in texts)).splitlines()
    return [list(map(int, line.split())) for line in lines]


def decoded(parts: Callable[..., str], path: Path, lists: list[list[int]]) -> list[str]:
    """Return the streamed text of each list of ids in the C++ runner."""
    lines = parts("decode", path, stdin="".join(f"{' '.join(map(str, ids))}\n" for ids in lists))
    return [bytes.fromhex(line).decode() for line in lines.splitlines()]


def test_texts_become_the_ids_of_the_library_and_back(parts, pair):
    tokenizer, path = pair
    texts = [*random_texts(5000, seed=path.parent.name), *SCRIPTS.values(), "".join(SCRIPTS.values()) * 20]
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert encoded(parts, path, texts) == expected
    assert decoded(parts, path, expected) == tokenizer.decode_batch(expected)


def test_any_ids_are_streamed_as_the_library_decodes_them(parts, pair):
    tokenizer, path = pair
    generator = random.Random(2)
    characters = [tokenizer.token_to_id(character) for character in "âĤ¬ðŁÃ¤a"]  # of bytes that begin or end another
    pools = (range(tokenizer.get_vocab_size() + 3), characters)
    lists = [generator.choices(generator.choice(pools), k=generator.randrange(12)) for _ in range(5000)]
    assert decoded(parts, path, lists) == tokenizer.decode_batch(lists)


@pytest.mark.parametrize("name", NAMES)
def test_words_end_at_the_same_characters(name, parts, tmp_path):
    """A word that ended elsewhere would have other ids in a tokenizer that merges across every boundary."""
    tokenizer = boundary_tokenizer(name)
    path = save(tokenizer, tmp_path)
    points = [*range(1, 0x250), *range(0x250, 0x1FC00, 13), *range(0x1680, 0x2070), *range(0x2EBE0, 0x2EE70, 7)]
    points += [*range(0x31340, 0x31360), 0x180E, 0x17F, 0x212A, 0x200B, 0x85, 0x20000, 0xE0001]
    characters = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    texts = [f"a{c}b 1{c}2  {c} \n{c}'{c}  {c}\n 12{c}" for c in characters]
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    found = encoded(parts, path, texts)
    assert [hex(ord(c)) for c, a, b in zip(characters, found, expected, strict=True) if a != b] == []


def test_text_is_composed_as_in_the_library(parts, tmp_path):
    tokenizer = boundary_tokenizer("qwen2")
    path = save(tokenizer, tmp_path)
    generator = random.Random(3)
    marks = [*range(0x300, 0x370), 0x8CA, 0x93C, 0x9D7, 0xC3C, 0x1161, 0x11A8, 0x3099, 0x11930, 0x1DF6, 0x1E4EC]
    letters = [*map(ord, "aeou<>ΑωИ"), 0x915, 0x9C7, 0x1100, 0xAC00, 0x304B, 0x11935, 0x212B, 0xF900, 0x1E69]
    texts = ["".join(chr(generator.choice(marks + letters)) for _ in range(8)) for _ in range(5000)]
    assert encoded(parts, path, texts) == [encoding.ids for encoding in tokenizer.encode_batch(texts)]


@pytest.mark.parametrize("text", ["a", " ", "\n", "é", "ab", "!?", "x1 ", "不"])
def test_a_long_text_takes_no_longer_a_character(text, parts, tmp_path):
    path = save(trained("llama3"), tmp_path)
    start = time.monotonic()
    opening, encoding = map(float, parts("speed", path, stdin=text * (100_000 // len(text.encode()))).split())
    assert opening < 1000 and encoding < 500, (opening, encoding)  # milliseconds; what is quadratic takes 10 s
    assert time.monotonic() - start < 60


TOKENS = (
    AddedToken("<|im_start|>", special=True, normalized=False),
    AddedToken("[sep]", lstrip=True, rstrip=True, normalized=False),
    AddedToken("é", normalized=True),
    AddedToken("naïve user", special=True, normalized=True),
    AddedToken("ж x", normalized=False),
)
WORDS = [token.content for token in TOKENS] + ["e\u0301", "nai\u0308ve user", " ", "a", "\u0301", "12", "\n", "<|im"]


def test_added_tokens_are_found_before_and_after_normalizing(parts, tmp_path):
    """In a template all of them are; of what a user writes none becomes a special one."""
    path = save(boundary_tokenizer("qwen2"), tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    for token in TOKENS:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    found = tokenizer.get_added_tokens_decoder()
    rules = TokenizerRules("never", False, False, tuple(rule(index, token) for index, token in found.items()))
    card = make_card(
        vocab_size=tokenizer.get_vocab_size(),
        rules=rules,
        prompt=PromptTemplate("", "", "", image_separator="", answer_end=""),
    )
    generator, turns, expected = random.Random(4), [], []
    for index in range(2000):
        is_question, text = index % 2 == 0, "a" + "".join(generator.choices(WORDS, k=generator.randrange(1, 9)))
        answer = [generator.randrange(card.vocab_size) for _ in range(9)]
        # A prompt with <image> is a template as a whole.
        asked = text if is_question else text + "<image>"
        turns.append(
            {
                "text": asked,
                "is_question": is_question,
                "num_images": int(not is_question),
                "before": None,
                "answer": answer,
            }
        )
        tokenizer.encode_special_tokens = is_question
        expected.append((tokenizer.encode(text).ids, tokenizer.decode(answer)))
    stdin = card.to_json() + "\0" + "".join(f"{json.dumps(turn)}\n" for turn in turns)
    special = {index for index, token in found.items() if token.special}
    for turn, line, (ids, shown) in zip(
        turns, map(json.loads, parts("turn", path, stdin=stdin).splitlines()), expected, strict=True
    ):
        assert (line["ids"][0], line["shown"]) == (ids, shown), turn
        assert not turn["is_question"] or not special & set(ids)


def rule(index: int, token: AddedToken) -> Added:
    """Return an added token as a model card has it."""
    return Added(index, token.content, token.special, token.lstrip, token.rstrip, token.normalized)


def test_what_a_user_writes_never_becomes_a_special_token(parts, tmp_path):
    """Nor by merging, and not as a whole word."""
    for ignore_merges in (False, True):
        file = json.loads(trained("llama3").to_str())
        file["model"]["ignore_merges"] = ignore_merges
        word = next(token for token in file["model"]["vocab"] if token.isalpha() and token.isascii() and len(token) > 2)
        index = file["model"]["vocab"][word]
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(file))
        assert encoded(parts, path, [word]) == [[index]]
        file["added_tokens"] = [{**ADDED, "id": index, "content": word}]
        path.write_text(json.dumps(file))
        (ids,) = encoded(parts, path, [word])
        assert index not in ids and len(ids) > 1


ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def changed(**parts_of_file: Any) -> dict[str, Any]:
    """Return a tokenizer.json with other parts. A part named ``model_NAME`` is one of the model."""
    file = json.loads(trained("qwen2").to_str())
    for name, value in parts_of_file.items():
        place, key = (file["model"], name.removeprefix("model_")) if name.startswith("model_") else (file, name)
        place[key] = value
    return file


def split(pattern: object, **options: object) -> dict[str, Any]:
    """Return a pre_tokenizer that splits by a pattern."""
    step = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False, **options}
    return {"type": "Sequence", "pretokenizers": [step, BYTES]}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
VOCAB = changed()["model"]["vocab"]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "WordPiece": ({"model_type": "WordPiece"}, "a model of the type WordPiece"),
    "unknown token": ({"model_unk_token": "a"}, "unk_token a"),
    "suffix": ({"model_end_of_word_suffix": "</w>"}, "end_of_word_suffix </w>"),
    "prefix": ({"model_continuing_subword_prefix": "##"}, "continuing_subword_prefix ##"),
    "dropout": ({"model_dropout": 0.5}, "dropout 0.5"),
    "byte fallback": ({"model_byte_fallback": True}, "byte_fallback true"),
    "NFKC": ({"normalizer": {"type": "NFKC"}}, "a normalizer NFKC"),
    "one of two normalizers": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}},
        "a normalizer Lowercase",
    ),
    "no pre_tokenizer": ({"pre_tokenizer": None}, "its pre_tokenizer has no ByteLevel"),
    "Metaspace": ({"pre_tokenizer": {"type": "Metaspace"}}, "a pre_tokenizer Metaspace"),
    "a space before": ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, "add_prefix_space"),
    "a text to split by": ({"pre_tokenizer": split({"String": " "})}, "a Split by the pattern"),
    "removed": ({"pre_tokenizer": split({"Regex": " "}, behavior="Removed")}, "the behavior Removed"),
    "inverted": ({"pre_tokenizer": split({"Regex": " "}, invert=True)}, "a Split with invert"),
    "word characters": ({"pre_tokenizer": split({"Regex": r"\w+"})}, r"\w, which is not known"),
    "look behind": ({"pre_tokenizer": split({"Regex": "(?<=a)b"})}, "(?<, which"),
    "an end of line": ({"pre_tokenizer": split({"Regex": r"\s+$"})}, "$, which"),
    "a script": ({"pre_tokenizer": split({"Regex": r"\p{Han}+"})}, r"\p{Han}, which"),
    "a set in a set": ({"pre_tokenizer": split({"Regex": "[a[b]]"})}, "[, which"),
    "an open group": ({"pre_tokenizer": split({"Regex": "(a"})}, "is wrong: missing closing parenthesis"),
    "counts of counts": ({"pre_tokenizer": split({"Regex": "((((a{999}){999}){999}){999})"})}, "is wrong: "),
    "groups in groups": ({"pre_tokenizer": split({"Regex": "(" * 200 + ")" * 200})}, "are too deeply nested"),
    "a long pattern": ({"pre_tokenizer": split({"Regex": "a" * 5000})}, "a pattern has 5000 bytes"),
    "WordPiece's decoder": ({"decoder": {"type": "WordPiece"}}, "a decoder WordPiece"),
    "no decoder": ({"decoder": None}, "a decoder null"),
    "two decoders": ({"decoder": {"type": "Sequence", "decoders": [BYTES, BYTES]}}, "a decoder {"),
    "an option of the model": ({"model_sparse": True}, "an option sparse"),
    "an option of a normalizer": ({"normalizer": {"type": "NFC", "strict": 1}}, "an option strict"),
    "an option of a step": ({"pre_tokenizer": {**BYTES, "strip": False}}, "an option strip"),
    "an option of Split": ({"pre_tokenizer": split({"Regex": "a"}, max_splits=3)}, "an option max_splits"),
    "an option of a Sequence": ({"pre_tokenizer": {**split({"Regex": "a"}), "reverse": True}}, "an option reverse"),
    "an option of a decoder": ({"decoder": {**BYTES, "cleanup": True}}, "an option cleanup"),
    "too many steps": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [*split({"Regex": "a"})["pretokenizers"][:1] * 16, BYTES],
            }
        },
        "has more than 16 steps",
    ),
    "an id that no token has": ({"model_vocab": {**VOCAB, "zzz": 9999}}, "has no token with the id "),
    "an added id with a gap before": (
        {"added_tokens": [{**ADDED, "id": len(VOCAB) + 5, "content": "<x>"}]},
        f"has no token with the id {len(VOCAB)}, but some with larger ids",
    ),
    "one id twice": ({"model_vocab": {**VOCAB, "zzz": 5}}, "two tokens have the id 5"),
    "a negative id": ({"model_vocab": {"a": -1}}, "are of another kind"),
    "a large id": ({"model_vocab": {"a": 2**40}}, "a token has the id 1099511627776"),
    "a text for an id": ({"model_vocab": {"a": "0"}}, "are of another kind"),
    "no text": ({"model_vocab": {"": 0}}, "a token is empty"),
    "a long token": ({"model_vocab": {"a" * 5000: 0}}, "longer than 4096 bytes"),
    "a list for a vocab": ({"model_vocab": ["a"]}, "are of another kind"),
    "no merges": ({"model_merges": None}, "are of another kind"),
    "a merge of three": ({"model_merges": ["a b c"]}, "a merge is not two texts"),
    "a list of three": ({"model_merges": [["a", "b", "c"]]}, "a merge is not two texts"),
    "a merge of no token": ({"model_merges": [["a", "\u20ac"]]}, 'a merge has "€", which is no token'),
    "a merge to no token": ({"model_merges": [["y", "q"]]}, 'a merge has "yq", which is no token'),
    "an added token beyond": ({"added_tokens": [{**ADDED, "id": 2**33, "content": "a"}]}, "an added token has the id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(name, parts, tmp_path):
    changes, message = REFUSED[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed(**changes)))
    refusal = parts("encode", path)
    assert refusal.startswith(f"refused: {path} is not a tokenizer that can be read: ") and message in refusal


def test_damaged_files_are_refused(parts, tmp_path):
    path, content = tmp_path / "tokenizer.json", json.dumps(changed())
    for damaged in (
        content[:-1],
        content + "x",
        "{" + '"a":[' * 100_000,
        '{"post_processor":' + "[" * 100_000,
        content.replace('"vocab"', '"vocab": {}, "vocab"'),
        content.replace('"model"', '"model": {}, "model"'),
        content.replace('"vocab": {', r'"vocab": {"\ud800": 9999,'),
        '{"model": 7}',
        "{}",
    ):
        path.write_text(damaged)
        assert parts("encode", path).startswith(f"refused: {path} is not a tokenizer that can be read: "), damaged[:99]
    path.write_bytes(content.encode().replace(b'"vocab": {', b'"vocab": {"\xff": 9999,'))
    assert "there is a mistake at byte" in parts("encode", path)


def test_a_pattern_cannot_take_forever(parts, tmp_path):
    path = tmp_path / "tokenizer.json"
    for pattern in (r"(?:(?:a+)+)+b", r"(?=\p{L}*+b)a", r"(a|aa)+b"):
        path.write_text(json.dumps(changed(pre_tokenizer=split({"Regex": pattern}))))
        start = time.monotonic()
        assert "the tokenizer's pattern takes too long" in parts("encode", path, stdin="a" * 500_000)
        assert time.monotonic() - start < 30


def test_every_spelling_of_a_file_is_read_alike(parts, tmp_path):
    tokenizer = trained("qwen2")
    texts = list(random_texts(300, seed=5))
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    pairs = changed()["model"]["merges"]
    model = changed()["model"]
    spellings = [
        changed(model_merges=["#version: 0.2", *map(" ".join, pairs)]),
        changed(model_merges=[pairs[9], *pairs]),  # the last of two counts
        changed(model_unk_token=None, model_end_of_word_suffix="", model_dropout=0.0),
        changed(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
        changed(decoder={"type": "Sequence", "decoders": [BYTES]}),
        changed(model={"merges": model["merges"], "vocab": model["vocab"], "type": "BPE"}),
    ]
    for file in spellings:
        (tmp_path / "any.name").write_text("\n " + json.dumps(file))
        assert encoded(parts, tmp_path / "any.name", texts) == expected
