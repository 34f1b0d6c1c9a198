"""The figures of answers with each way to guess tokens, and the conversations that they are of."""

from __future__ import annotations

import pytest

from benchmarks.drafts_on_scenes import LOOKUP, PLAIN, Said, cells, conversation, figures
from training import questions


def said(ids: tuple[int, ...], *, drafted: int = 0, accepted: int = 0, ms: float) -> Said:
    return Said(ids, drafted, accepted, ms=ms, evals=len(ids) - 1)


# Two scenes of three answers each. With guesses, one token of a first answer is another.
PLAIN_ANSWERS = [said((1, 2, 3, 4, 5), ms=8), said((6, 2), ms=2), said((1, 2, 3, 4, 5), ms=8)]
LOOKED_UP = [
    said((1, 2, 3, 4, 5), drafted=2, ms=9),
    said((7, 2), ms=3),
    said((1, 2, 3, 4, 5), drafted=4, accepted=3, ms=2),
]
SCENES = [{PLAIN: PLAIN_ANSWERS, LOOKUP: LOOKED_UP}] * 2


def test_first_answers_and_repeated_ones_are_counted_apart():
    found = figures(SCENES)
    first, repeated = found[LOOKUP]["first answers"], found[LOOKUP]["repeated answers"]
    counted = ("answers", "tokens", "drafted", "accepted", "differ")
    assert [first[name] for name in counted] == [4, 14, 4, 0, 2]
    assert [repeated[name] for name in counted] == [2, 10, 8, 6, 0]
    assert first["ms"] == pytest.approx(24 / 10) and repeated["ms"] == pytest.approx(4 / 8)
    assert first["times"] == pytest.approx(20 / 24) and repeated["times"] == pytest.approx(4)
    assert all(row["times"] == 1 and row["differ"] == row["drafted"] == 0 for row in found[PLAIN].values())


def test_a_line_of_a_table_has_the_figures():
    found = figures(SCENES)
    assert cells(found[LOOKUP]["repeated answers"]) == ("10", "6 of 8", "0 of 2", "0.500", "4.00 (4.00-4.00)")
    assert cells(found[PLAIN]["repeated answers"]) == ("10", "", "", "2.000", "1")


def test_the_last_question_of_a_conversation_has_the_answer_of_the_first():
    types = set()
    for number in range(24):
        image, asked = conversation(number)
        scene = questions.render_scene(questions.HELD_OUT_SEED + number)
        answers = dict(scene.questions)
        assert image.size == scene.image.size and len(set(asked)) == 3
        assert answers[asked[0]] == answers[asked[2]] != answers[asked[1]]
        types |= {name for name, pairs in scene.questions_by_type.items() if asked[1] in dict(pairs)}
    assert types == set(questions.QUESTION_TYPES) - {"description"}
