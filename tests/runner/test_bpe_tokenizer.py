"""Byte-level BPE: the same tokens and the same text as the library ``tokenizers`` and transformers, and no others."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from llava_runner.bpe_model import ALPHABET
from llava_runner.bpe_tokenizer import BpeTokenizer
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import AddedToken, TokenizerRules
from llava_runner.errors import PackageError, PromptError
from llava_runner.prompt import Span
from llava_runner.tokenizer import TextStream
from llava_runner.tokenizer_file import load_tokenizer
from tests.byte_level import KINDS, TEXTS, random_strings, tokenizer_json

# Each kind gets as many; test by hand with more.
COUNT = 2500


def added_tokens(document: dict[str, Any]) -> tuple[AddedToken, ...]:
    """Return the added tokens of a ``tokenizer.json``."""
    names = ("id", "content", "special", "lstrip", "rstrip", "normalized")
    return tuple(AddedToken(**{name: token[name] for name in names}) for token in document["added_tokens"])


def chat(document: dict[str, Any], *tokens: AddedToken) -> ChatTokenizer:
    """Return the tokenizer of a chat model, with further added tokens."""
    rules = TokenizerRules("never", False, False, (*added_tokens(document), *tokens))
    return ChatTokenizer(BpeTokenizer.from_json(json.dumps(document)), rules=rules, bos_id=0)


def ids_of(tokenizer: ChatTokenizer, text: str, *, is_template: bool = True) -> list[int]:
    """Return the tokens of a text of a template, or of a user."""
    (ids,) = tokenizer.encode_turn([(Span(text, is_template),)])
    return ids


def streamed(tokenizer: ChatTokenizer | BpeTokenizer, ids: list[int]) -> str:
    """Return the text of tokens that come one by one."""
    stream = TextStream(tokenizer)
    return "".join([*map(stream.push, ids), stream.flush()])


@pytest.mark.parametrize("name", KINDS)
def test_tokens_and_text_are_the_librarys(name, tmp_path):
    content = tokenizer_json(name)
    (tmp_path / "tokenizer.json").write_text(content)
    library = tokenizers.Tokenizer.from_str(content)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    tokenizer = chat(json.loads(content))
    strings = [*TEXTS, "".join(TEXTS), " " * 3000, " " * 999 + "x", *random_strings(COUNT, seed=len(name))]
    for text in strings:
        ids = library.encode(text, add_special_tokens=False).ids
        assert ids_of(tokenizer, text) == ids == theirs.encode(text, add_special_tokens=False), repr(text)
        shown = library.decode(ids, skip_special_tokens=True)
        assert streamed(tokenizer, ids) == shown == theirs.decode(ids, skip_special_tokens=True), repr(text)


@pytest.mark.parametrize("name", KINDS)
def test_text_of_random_tokens_is_the_librarys(name):
    content = tokenizer_json(name)
    library, tokenizer = tokenizers.Tokenizer.from_str(content), chat(json.loads(content))
    size = library.get_vocab_size()
    single = [i for i in range(size) if len(tokenizer.decode_piece(i)) == 1]
    generator = random.Random(1)
    for _ in range(COUNT):
        pool = single if generator.random() < 0.5 else range(size)
        ids = generator.choices(pool, k=generator.randrange(12))
        assert streamed(tokenizer, ids) == library.decode(ids, skip_special_tokens=True), ids


def test_characters_come_whole():
    tokenizer = BpeTokenizer.from_json(tokenizer_json("llama3"))
    library = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = library.pre_tokenize_str("a🐈é")[0][0]
    ids = [tokenizer.model.vocab[character] for character in spelled]
    stream = TextStream(tokenizer)
    assert [stream.push(i) for i in ids] == ["a", "", "", "", "🐈", "", "é"]
    assert stream.push(ids[1]) == "" and stream.push(ids[2]) == "" and stream.flush() == "\ufffd"


@pytest.mark.parametrize("ignore_merges", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_a_users_text_never_becomes_a_special_token(name, ignore_merges):
    document = json.loads(tokenizer_json(name))
    document["model"]["ignore_merges"] = ignore_merges
    # As in a tokenizer without a pattern, whole texts are looked up.
    document["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    specials = {token["id"]: token["content"] for token in document["added_tokens"]}
    tokenizer = chat(document)
    for token_id, text in specials.items():
        assert ids_of(tokenizer, text) == [token_id]
        for asked in (text, f"a{text}", f"{text}{text}\n"):
            ids = ids_of(tokenizer, asked, is_template=False)
            assert not specials.keys() & set(ids) and streamed(tokenizer, ids) == asked


def test_merges_that_lead_to_a_special_token_are_left_out_of_users_texts():
    document = json.loads(tokenizer_json("llama3"))
    vocab = document["model"]["vocab"]
    word = max((text for text in vocab if text.isascii() and text.isalpha()), key=len)
    part = next(text for text in vocab if text.startswith("Ġ") and text.isalpha() and 4 < len(text) < 7)
    for text in (word, part):
        marked = AddedToken(vocab[text], text.replace("Ġ", " "), True, False, False, False)
        plain, tokenizer = chat(document), chat(document, marked)
        shown = text.replace("Ġ", " ")
        assert ids_of(plain, shown, is_template=False) == [vocab[text]]
        ids = ids_of(tokenizer, shown, is_template=False)
        assert len(ids) > 1 and streamed(tokenizer, ids) == shown
        assert ids_of(tokenizer, shown) == [vocab[text]] and streamed(tokenizer, [vocab[text]]) == ""


def test_a_special_token_that_is_a_byte_stays_readable_in_users_texts():
    document = json.loads(tokenizer_json("gpt2"))
    byte = AddedToken(document["model"]["vocab"]["!"], "!", True, False, False, False)
    assert ids_of(chat(document, byte), "!", is_template=False) == [byte.id]


@pytest.mark.parametrize("name", KINDS)
def test_normalized_added_tokens_are_found_in_normalized_text(name):
    document = json.loads(tokenizer_json(name))
    size = 1 + max(*document["model"]["vocab"].values(), *(token["id"] for token in document["added_tokens"]))
    contents = (("é[A]", True), ("e\u0301[B]", True), ("e\u0301[C]", False), ("[D] ", True), ("Å[E]", True))
    document["added_tokens"] += [
        {"id": size + i, "content": text, "single_word": False, "lstrip": i == 2, "rstrip": i == 3,
         "normalized": normalized, "special": i % 2 == 0}
        for i, (text, normalized) in enumerate(contents)
    ]  # fmt: skip
    library, tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document)), chat(document)
    generator = random.Random(3)
    parts = ("é[A]", "e\u0301[A]", "é[B]", "e\u0301[B]", "é[C]", "e\u0301[C]", "[D]  ", "\u212b[E]", "A\u030a[E]",
             "e", "\u0301", "[A]", " ", "x", "\u0323", "가\u11a8", "\n")  # fmt: skip
    for _ in range(1500):
        text = "".join(generator.choices(parts, k=generator.randrange(1, 9)))
        ids = library.encode(text, add_special_tokens=False).ids
        assert ids_of(tokenizer, text) == ids, repr(text)
        assert streamed(tokenizer, ids) == library.decode(ids), repr(text)
        specials = {token["id"] for token in document["added_tokens"] if token["special"]}
        for cut in (0, len(text) // 2):
            (found,) = tokenizer.encode_turn([(Span(text[:cut], True), Span(text[cut:], False))])
            (whole,) = tokenizer.encode_turn([(Span(text[:cut], True),)]) if cut else ([],)
            # What is special in a mixed text is special in the template's part of it alone.
            assert sum(i in specials for i in found) <= sum(i in specials for i in whole), repr(text)


def test_text_that_no_prompt_can_be():
    tokenizer = BpeTokenizer.from_json(tokenizer_json("qwen2"))
    with pytest.raises(PromptError, match="not valid Unicode at character 1"):
        tokenizer.encode("a\udcff")
    with pytest.raises(PromptError, match="at most 1048576 are read"):
        tokenizer.encode("x" * (1 << 20) + "é")
    assert len(tokenizer.encode(" " * (1 << 19) + "x" * (1 << 19))) > 1000


def test_padded_ids_show_nothing():
    tokenizer = BpeTokenizer.from_json(tokenizer_json("gpt2"))
    assert tokenizer.decode_piece(tokenizer.vocab_size) == b""


def changed(*path: Any, to: Any) -> Any:
    """Return a change of a ``tokenizer.json``: a value at a place, or a function of the object there."""

    def change(document: dict[str, Any]) -> None:
        holder: Any = document
        for name in path[:-1]:
            holder = holder[name]
        holder[path[-1]] = to(holder[path[-1]]) if callable(to) else to

    return change


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    """Return a pre-tokenizer of these steps, and ByteLevel."""
    return {"type": "Sequence", "pretokenizers": [*steps, {"type": "ByteLevel", "add_prefix_space": False}]}


PRE, MODEL = "pre_tokenizer", "model"
ISOLATED = {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False}
REFUSED = [
    (changed(MODEL, "type", to="Unigram"), "model Unigram .* is not supported"),
    (changed(MODEL, "type", to=7), "model 7 .* is not supported"),
    (changed(MODEL, "dropout", to=0.1), "dropout .* is 0.1"),
    (changed(MODEL, "unk_token", to="<unk>"), "unk_token .* is '<unk>'"),
    (changed(MODEL, "end_of_word_suffix", to="</w>"), "end_of_word_suffix"),
    (changed(MODEL, "continuing_subword_prefix", to="##"), "continuing_subword_prefix"),
    (changed(MODEL, "byte_fallback", to=True), "byte_fallback"),
    (changed(MODEL, "ignore_merges", to="yes"), "ignore_merges .* must be true or false"),
    (changed(MODEL, "shuffles", to=1), "shuffles .* not known"),
    (changed("normalizer", to={"type": "NFKC"}), "normalizer NFKC .* is not supported"),
    (changed("normalizer", to={"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}), "normalizer Lowercase"),
    (changed("normalizer", to={"type": "NFC", "strength": 2}), "strength .* not known"),
    (changed(PRE, to=None), "does not end with ByteLevel"),
    (changed(PRE, to={"type": "Metaspace", "replacement": "_"}), "pre_tokenizer Metaspace .* is not supported"),
    (changed(PRE, to=sequence({"type": "Whitespace"})), "pre_tokenizer Whitespace .* is not supported"),
    (changed(PRE, to=sequence({"type": "ByteLevel"})), "does not end with ByteLevel, or has several"),
    (changed(PRE, to=sequence({**ISOLATED, "behavior": "Removed"})), "Split with behavior 'Removed'"),
    (changed(PRE, to=sequence({**ISOLATED, "invert": True})), "Split with .* inverted"),
    (changed(PRE, to=sequence({**ISOLATED, "pattern": {"String": "a"}})), "only a Regex is supported"),
    (changed(PRE, to=sequence({**ISOLATED, "pattern": {"Regex": "(a"}})), "has a pattern that cannot be used"),
    (changed(PRE, to=sequence({**ISOLATED, "pattern": {"Regex": "a" * 9999}})), "at most 4096 characters"),
    (changed(PRE, to=sequence({**ISOLATED, "limit": 3})), "limit .* not known"),
    (changed(PRE, to=sequence(*[ISOLATED] * 16)), "17 steps"),
    (changed(PRE, to=sequence({"type": "Digits", "individual_digits": 3})), "individual_digits"),
    (changed(PRE, to={"type": "ByteLevel", "add_prefix_space": True}), "add_prefix_space .* is true"),
    (changed(PRE, to={"type": "ByteLevel"}), "add_prefix_space .* is true"),  # as it is where nothing is said
    (changed("decoder", to={"type": "Metaspace"}), "decoder Metaspace .* is not supported"),
    (changed("decoder", to=None), "lacks decoder"),
    (changed(MODEL, "vocab", to=lambda vocab: {**vocab, "zz": 5}), "has the id 5 twice"),
    (changed(MODEL, "vocab", to=lambda vocab: {**vocab, "zz": 999_999}), "has no token with the id"),
    (changed(MODEL, "vocab", to=lambda vocab: {**vocab, "zz": -1}), "-1 for the id of 'zz'"),
    (changed(MODEL, "vocab", to=lambda vocab: {**vocab, "zz": True}), "True for the id of 'zz'"),
    (changed(MODEL, "vocab", to=lambda vocab: {**vocab, "zz": 1 << 40}), "for the id of 'zz'"),
    (changed(MODEL, "vocab", to=lambda vocab: {**vocab, "\ud800": 3000}), "no text of at most"),
    (changed(MODEL, "vocab", to=lambda vocab: {**vocab, "y" * 5000: 3000}), "no text of at most"),
    (changed(MODEL, "vocab", to=lambda vocab: {it.replace("a", "\0"): vocab[it] for it in vocab}), "byte 0x61"),
    (changed(MODEL, "vocab", to=[]), "must be an object"),
    (changed(MODEL, "merges", to=lambda merges: [*merges, "a b c"]), "must be a pair of tokens"),
    (changed(MODEL, "merges", to=["a b"] * ((1 << 21) + 1)), "pairs; at most"),
    (changed(MODEL, "merges", to=lambda merges: [*merges, ["a"]]), "must be a pair of tokens"),
    (changed(MODEL, "merges", to=lambda merges: [*merges, ["a", 3]]), "must be a pair of tokens"),
    (changed(MODEL, "merges", to=lambda merges: [*merges, ["a", "qqq"]]), "are not in the vocabulary"),
    (changed(MODEL, "merges", to=lambda merges: [*merges, ["\x01", "\x02"]]), "are not in the vocabulary"),
    (changed("added_tokens", 0, "id", to=5), "has the id 5, and another token has it"),
    (changed("added_tokens", to=lambda tokens: [*tokens, tokens[0]]), "another token has it"),
    (changed("added_tokens", 0, "content", to=""), "a text of at most"),
    (changed("added_tokens", 0, to="x"), "must be a list of objects"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_not_known_is_refused_by_name(change, message, tmp_path):
    document = json.loads(tokenizer_json("smollm2"))
    change(document)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    with pytest.raises(PackageError, match=message) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "content",
    [b"{", b"{}", b'{"model": 3}', b'{"a":' * 100_000, b'{"model": {"type": "BPE"}}', b"{\xff", b'{"a": 1e999}'],
)
def test_damaged_files(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=r"tokenizer\.json"):
        load_tokenizer(path)


def test_a_file_is_known_by_its_content(tmp_path, tokenizer_model):
    path = tmp_path / "tokenizer.bin"
    path.write_text(tokenizer_json("gpt2"))
    assert isinstance(load_tokenizer(path), BpeTokenizer)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_model.read_bytes())
    assert load_tokenizer(path).vocab_size == 420
    path = tmp_path / "like_json.bin"
    path.write_bytes((123).to_bytes(4, "little") + b"x" * 12)  # 123 tokens, whose number begins as an object does
    with pytest.raises(PackageError, match="it ends too early"):
        load_tokenizer(path)


def test_a_pattern_that_takes_too_long_ends_in_an_error(capfd):
    document = json.loads(tokenizer_json("gpt2"))
    document["pre_tokenizer"] = sequence({**ISOLATED, "pattern": {"Regex": "(a+)+$"}})
    tokenizer = BpeTokenizer.from_json(json.dumps(document))
    with pytest.raises(PackageError, match="takes too long"):
        tokenizer.encode("a" * 60 + "b")


def test_bytes_that_are_no_tokens_are_left_out_as_in_the_library():
    document = json.loads(tokenizer_json("smollm2"))
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    lacking = {character for character, byte in ALPHABET.items() if byte in (0x04, 0x13, 0xC0, 0xF1, 0xF2, 0xFF)}
    document["model"]["merges"] = [merge for merge in merges if not lacking & set("".join(merge))]
    # The ids stay without holes: their places are taken.
    document["model"]["vocab"] = {f"{text}{text}x" if text in lacking else text: vocab[text] for text in vocab}
    library, tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document)), chat(document)
    for text in ("a\x04b\x13", "\U00040000x", "\U000a1234\u20ac", *random_strings(500)):
        ids = library.encode(text, add_special_tokens=False).ids
        assert ids_of(tokenizer, text) == ids and streamed(tokenizer, ids) == library.decode(ids), repr(text)


def test_merges_are_read_as_pairs_and_as_texts():
    document = json.loads(tokenizer_json("qwen2"))
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in document["model"]["merges"]]
    found = []
    for merges in (pairs, ["#version: 0.2", *(" ".join(pair) for pair in pairs)]):
        document["model"]["merges"] = merges
        document["model"].pop("type", None)  # as in older files
        found.append([BpeTokenizer.from_json(json.dumps(document)).encode(text) for text in TEXTS])
    assert found[0] == found[1]
