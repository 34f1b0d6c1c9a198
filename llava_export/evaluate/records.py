"""What is known of each item once it was asked, as one line of the file of results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from llava_export.errors import DatasetError
from llava_runner.documents import JsonObject


@dataclass(frozen=True)
class Result:
    """A package's answer to an item: its text, its score, and the number of its tokens.

    Against the float model, the package also reads that one's answer of ``compared`` tokens. Of these, ``agreed`` are
    the package's choice, too, and ``kl`` is the sum of their divergences in nats. ``first_difference`` counts the
    tokens of the package's own answer up to the first other one, or is None where the answers are the same.
    """

    answer: str
    score: float
    tokens: int
    compared: int = 0
    agreed: int = 0
    kl: float = 0.0
    first_difference: int | None = None


@dataclass(frozen=True)
class Record:
    """An item, the result of each package, and the float model's answer where one was asked."""

    id: str
    kind: str
    image: str
    question: str
    expected: tuple[str, ...]
    results: tuple[Result, ...]
    float_answer: str | None = None
    float_score: float | None = None

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_object(cls, fields: JsonObject) -> Record:
        """Return the record that ``to_json`` wrote. Raises ``DatasetError`` if it is none."""
        record = fields.record(cls)
        scores = [*(result.score for result in record.results), record.float_score or 0.0]
        if not all(0 <= score <= 1 for score in scores):
            raise DatasetError(f"{fields.where()} has a score that is not from 0 to 1")
        return record
