"""Byte-level BPE tokenizers with the splits of published models, trained on little text, and texts to compare on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers, trainers

from tests.byte_level import KINDS, tokenizer_of

NAMES = tuple(KINDS)
# Sentences of six scripts, code and emoji.
SCRIPTS = {
    "Latin": "All human beings are born free and equal in dignity and rights. Où sont les œufs? Größe, naïve, Ærø.\n",
    "Cyrillic": "Все люди рождаются свободными и равными в своём достоинстве и правах.\n",
    "Arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.\n",
    "Devanagari": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।\n",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。\n",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.\n",
    "code": "def f(x):\n    return {'a': x[1:-2] ** 3.14}  # they're; I'LL\n\n\n\tif (a != b) { ++i; }\r\n",
    "emoji": "👩‍👩‍👧 ok 🇪🇺!! 🏽 ❤️…  —  \n\n   \t end",
}
ALPHABETS = (
    "abcdefgh ABC .,?!'\"",
    "0123456789 ½²٣",
    "   \t\n\r",
    "naïve ÀÉÎõü ß\u017f\u212a",
    "e\u0301a\u0308n\u0303\u200d\ufe0f",
    "漢字かなカナ한국어",
    "😀👩‍👧🏽🇪🇺",
    "\x01\x1b\x7f\x85\u2028\ufeff\ufffd\u180e\u200b\xa0\u3000",
    "'s 'T 're'LL don't ",
)


@cache
def trained(name: str) -> Tokenizer:
    """Return a tokenizer of 800 tokens. That of SmolLM2 lacks some bytes, as the real one does."""
    tokenizer = tokenizer_of(KINDS[name])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=alphabet[: 200 if name == "smollm2" else 256], show_progress=False
    )
    tokenizer.train_from_iterator([text for text in SCRIPTS.values() for _ in range(3)], trainer)
    return tokenizer


@cache
def boundary_tokenizer(name: str) -> Tokenizer:
    """Return a tokenizer that merges each of ``ab12 '`` and a new line with any byte before or after it.

    So its ids show where words begin and end.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    merges = []
    for sign in "ab12'ĠĊ":
        for pair in [(sign, c) for c in alphabet] + [(c, sign) for c in alphabet]:
            if "".join(pair) not in vocab:
                vocab["".join(pair)] = len(vocab)
                merges.append(pair)
    return tokenizer_of(KINDS[name], vocab=vocab, merges=merges)


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write a tokenizer to a folder. Return the path of its file."""
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def random_texts(count: int, *, seed: object) -> Iterator[str]:
    """Yield texts of mixed characters; a quarter of them of any characters at all but U+0000."""
    generator = random.Random(str(seed))
    for index in range(count):
        if index % 4 == 0:
            points = (generator.randrange(1, 0x33000) for _ in range(generator.randrange(1, 30)))
            yield "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        else:
            alphabet = "".join(generator.sample(ALPHABETS, 3)) + "the circle "
            yield "".join(generator.choices(alphabet, k=generator.randrange(1, 60)))
