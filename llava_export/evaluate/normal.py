"""Answers as the VQA evaluation compares them: without case, articles, most punctuation, and with digits for words.

From the description at https://visualqa.org/evaluation.html: lower case; periods removed except in decimals; number
words as digits; articles removed; the apostrophe of a contraction added; other punctuation but apostrophes and colons
replaced by a space, or by nothing in a comma between digits.
"""

from __future__ import annotations

import re
from itertools import product

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIGITS = {word: str(value) for value, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
MARKS = str.maketrans(dict.fromkeys(';/[]"{}()=+\\_-><@`,?!', " "))
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all you'd you'd've you'll you're you've
"""


def _without_apostrophes() -> dict[str, str]:
    """Return each contraction by every spelling of it that lacks an apostrophe or more."""
    found = {}
    for word in CONTRACTIONS.split():
        first, *parts = word.split("'")
        for marks in product(("", "'"), repeat=len(parts)):
            found[first + "".join(mark + part for mark, part in zip(marks, parts, strict=True))] = word
    return found


SPELLED = _without_apostrophes()


def normal(answer: str) -> str:
    """Return an answer as the VQA evaluation compares it."""
    text = re.sub(r"(?<=\d),(?=\d)", "", answer.lower()).translate(MARKS)
    text = re.sub(r"\.(?!\d)", "", text)
    words = [DIGITS.get(word, word) for word in text.split() if word not in ARTICLES]
    return " ".join(SPELLED.get(word, word) for word in words)
