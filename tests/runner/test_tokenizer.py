import random
import struct
from typing import Any

import pytest
from pytorch_tokenizers.llama2c import Llama2cTokenizer
from sentencepiece import SentencePieceProcessor

from llava_runner.errors import PackageError, PromptError
from llava_runner.tokenizer import TextStream
from llava_runner.tokenizer_file import load_tokenizer
from tests.runner.conftest import train_tokenizer

TOKENIZERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "pad": {"pad_id": 3},
    "added": {"user_defined_symbols": ["<sep>", "▁▁▁", "[/x]"]},
    "other names": {"bos_piece": "<begin>", "eos_piece": "<end>"},
}
ALPHABETS = [
    "abcdefghij ABC .,?!'\"",
    "0123456789 +-=",
    "   \t\n\r",
    "naïve ÀÉÎõü ß½ “”…—",
    "e\u0301a\u0308n\u0303\u200d\ufe0f",
    "漢字かなカナ한국어",
    "😀👩‍👧🏽🇪🇺🐈",
    "▁<s></s><unk><0x0A><sep><pad>[/x]",
    "\x00\x01\x1b\x7f\x85\u2028\ufeff\ufffd",
]


@pytest.fixture(scope="module", params=TOKENIZERS, ids=str)
def pair(request, tmp_path_factory):
    """Return the processor of a model, and the tokenizer read from the ``.bin`` that was written from it."""
    folder = tmp_path_factory.mktemp("tokenizers")
    model = train_tokenizer(folder / "tokenizer.model", **TOKENIZERS[request.param])
    Llama2cTokenizer(str(model)).export(str(folder / "tokenizer.bin"))
    return SentencePieceProcessor(model_file=str(model)), load_tokenizer(folder / "tokenizer.bin")


def random_texts(count):
    generator = random.Random(0)
    for index in range(count):
        if index % 5 == 0:
            code_points = (generator.randrange(1, 0x110000) for _ in range(generator.randrange(30)))
            yield "".join(chr(point) for point in code_points if not 0xD800 <= point < 0xE000)
        else:
            alphabet = "".join(generator.sample(ALPHABETS, 2)) + "the circle "
            yield "".join(generator.choices(alphabet, k=generator.randrange(40)))


def test_bin_and_model_agree_on_5000_random_strings(pair):
    processor, tokenizer = pair
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    for text in random_texts(5000):
        ids = processor.encode(text)
        assert tokenizer.encode(text) == ids, text
        assert stream(tokenizer, ids) == processor.decode(ids)


def stream(tokenizer, ids):
    decoder = TextStream(tokenizer)
    return "".join([decoder.push(token_id) for token_id in ids] + [decoder.flush()])


def test_streamed_text_equals_sentencepiece_on_random_ids(pair):
    processor, tokenizer = pair
    generator = random.Random(1)
    byte_ids = [index for index in range(tokenizer.vocab_size) if processor.is_byte(index)]
    special = [0, 1, 2, processor.piece_to_id("▁"), processor.piece_to_id("▁the")]
    for _ in range(3000):
        pool = byte_ids + special if generator.random() < 0.5 else range(tokenizer.vocab_size)
        ids = generator.choices(pool, k=generator.randrange(12))
        assert stream(tokenizer, ids) == processor.decode(ids), ids


def test_characters_come_whole(tokenizer_model):
    tokenizer = load_tokenizer(tokenizer_model)
    decoder = TextStream(tokenizer)
    ids = tokenizer.encode("a 🐈!")
    pieces = [decoder.push(token_id) for token_id in ids]
    assert len(ids) >= 6  # the cat takes four byte pieces
    assert "".join(pieces) == "a 🐈!"
    assert [piece for piece in pieces if "🐈" in piece] == ["🐈"]


def test_pieces_as_bytes(tokenizer_model):
    tokenizer = load_tokenizer(tokenizer_model)
    processor = SentencePieceProcessor(model_file=str(tokenizer_model))
    assert tokenizer.decode_piece(processor.piece_to_id("<0x0A>")) == b"\n"
    assert tokenizer.decode_piece(processor.piece_to_id("<0xF7>")) == b"\xf7"
    assert tokenizer.decode_piece(processor.piece_to_id("▁")) == b" "
    assert tokenizer.decode_piece(1) == b""
    assert tokenizer.decode_piece(tokenizer.vocab_size + 5) == b""


def test_ids_of_a_padded_vocabulary_show_as_nothing(tokenizer_model):
    tokenizer = load_tokenizer(tokenizer_model)
    ids = tokenizer.encode("red circle")
    assert stream(tokenizer, [*ids[:2], tokenizer.vocab_size, *ids[2:]]) == "red circle"


def test_text_that_is_not_unicode(tokenizer_model):
    with pytest.raises(PromptError, match="not valid Unicode at character 3"):
        load_tokenizer(tokenizer_model).encode("caf\udce9?")


def damaged_bins(content):
    yield "empty", b""
    yield "header only", content[:16]
    yield "cut in a piece", content[:-1]
    yield "cut in half", content[: len(content) // 2]
    yield "one byte more", content + b"x"
    yield "huge count", struct.pack("<I", 2**32 - 1) + content[4:]
    yield "bos beyond", content[:4] + struct.pack("<I", 10**6) + content[8:]
    yield "text", b"This is a text file and not a tokenizer at all, whatever its name may say."
    yield "not utf-8", content[:-1] + b"\xff"
    yield "piece twice", content.replace(b"<0x01>", b"<0x02>")


def test_damaged_bins(tokenizer_model, tmp_path):
    good, bad = tmp_path / "good.bin", tmp_path / "bad.bin"
    Llama2cTokenizer(str(tokenizer_model)).export(str(good))
    for name, content in damaged_bins(good.read_bytes()):
        bad.write_bytes(content)
        with pytest.raises(PackageError, match=r"bad\.bin is not a tokenizer"):
            load_tokenizer(bad)
            pytest.fail(name)


@pytest.mark.parametrize("kind", ["empty", "text", "truncated"])
def test_damaged_models(tokenizer_model, tmp_path, kind):
    path = tmp_path / "tokenizer.model"
    content = {
        "empty": b"",
        "text": b"hello world",
        "truncated": tokenizer_model.read_bytes()[:1500],
    }
    path.write_bytes(content[kind])
    with pytest.raises(PackageError, match=r"tokenizer\.model is not a tokenizer"):
        load_tokenizer(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(PackageError, match="does not exist"):
        load_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(PackageError, match="is not a tokenizer file"):
        load_tokenizer(tmp_path)
