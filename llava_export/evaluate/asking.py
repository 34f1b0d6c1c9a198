"""Asks packages, and the float model of their checkpoint, about one item after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.locate import local_folder
from llava_export.evaluate.items import Item
from llava_export.evaluate.reading import Prompt, Reader
from llava_export.evaluate.records import Record, Result
from llava_export.evaluate.scores import METRICS
from llava_export.pte.against import check_sizes
from llava_export.pte.read.describe import card_of
from llava_export.pte.read.program import read_pte
from llava_export.pte.verify import compare_logits
from llava_export.reference import FloatModel, float_model
from llava_runner.contract import ModelCard
from llava_runner.errors import PackageError
from llava_runner.model import Model, greedy
from llava_runner.program import Program
from llava_runner.program_file import file_sha256, find_tokenizer, structure_sha256
from llava_runner.tokenizer_file import load_tokenizer

Token = tuple[int, Tensor]  # with the logits ``[vocab_size]`` that it was chosen from


@dataclass(frozen=True)
class Job:
    """What is asked: ``programs``, each a ``.pte`` in its package, about images in ``folder``.

    ``metric`` names the way to score, and ``against`` a checkpoint whose float model is asked, too, with its parts as
    ``open_checkpoint`` takes them. ``threads`` is the number to compute with, or None for as many as the libraries
    choose. A job can be sent to another process.
    """

    programs: tuple[Path, ...]
    folder: Path
    metric: str
    max_new_tokens: int
    against: str | None = None
    parts: Mapping[str, str | None] = field(default_factory=dict)
    threads: int | None = None


def ask_here(job: Job, items: Sequence[Item]) -> Iterator[Record]:
    """Yield the record of each item, asked in this process."""
    asker = Asker(job)
    yield from map(asker.ask, items)


class Asker:
    """The loaded packages of a job, and the float model. Raises ``UserError`` for what cannot be loaded."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._models = [Program.open(path, cpu_threads=job.threads) for path in job.programs]
        self._readers = [open_reader(path) for path in job.programs]
        self._float: Model | None = None
        if job.against is not None:
            context = max(model.card.max_context_len for model in self._models)
            self._float = float_model(open_checkpoint(job.against, **job.parts), max_context_len=context)
            if isinstance(self._float, FloatModel):  # small: fastest with one thread, and always the same
                torch.set_num_threads(1)
            elif job.threads is not None:
                torch.set_num_threads(job.threads)

    def ask(self, item: Item) -> Record:
        """Return the record of an item. Raises ``ImageError`` for an image that cannot be read."""
        score = METRICS[self._job.metric].score
        # All stop at the same length, so that each has room to read the float model's answer.
        room = min(reader.card.max_context_len - reader.positions(item) for reader in self._readers)
        results = []
        asked: Prompt | None = None
        said: list[Token] = []
        first_said: str | None = None
        for model, reader in zip(self._models, self._readers, strict=True):
            prompt = reader.prompt(item, folder=self._job.folder)
            rows = prompt_rows(model, prompt)
            own = self._answer(model, reader, rows, room=room)
            text = reader.text(token for token, _ in own)
            result = Result(text, score(text, item.answers), len(own))
            if self._float is not None:
                if asked is None or not prompt.equals(asked):  # packages of one checkpoint read the same, mostly
                    asked = prompt
                    said = self._answer(self._float, reader, prompt_rows(self._float, prompt), room=room)
                if first_said is None:
                    first_said = reader.text(token for token, _ in said)
                result = compared(result, own, said, model=model, start=rows.shape[1])
            results.append(result)
        return Record(
            id=item.id,
            kind=item.kind,
            image=item.image,
            question=item.question,
            expected=item.answers,
            results=tuple(results),
            float_answer=first_said,
            float_score=None if first_said is None else score(first_said, item.answers),
        )

    def _answer(self, model: Model, reader: Reader, rows: Tensor, *, room: int) -> list[Token]:
        """Return a model's greedy answer to a prompt, of at most ``room`` tokens."""
        return list(greedy(model, rows, max_tokens=min(self._job.max_new_tokens, room), eos_ids=reader.card.eos_ids))


def prompt_rows(model: Model, prompt: Prompt) -> Tensor:
    """Return the rows ``float32 [1, T, hidden_size]`` of a prompt."""
    before, *after = (model.embed(ids) if ids else None for ids in prompt.ids)
    image = None if prompt.pixels is None else model.encode_image(prompt.pixels)
    return torch.cat([part for part in (before, image, *after) if part is not None], dim=1)


def compared(result: Result, own: Sequence[Token], said: Sequence[Token], *, model: Model, start: int) -> Result:
    """Return a result with how it compares with the float model's answer, ``said``.

    ``own`` is the package's answer, which ``model`` has just given to a prompt of ``start`` positions.
    """
    stages = [
        compare_logits(found, expected, stage=f"token {number}")
        for number, (found, (_, expected)) in enumerate(
            zip(forced_logits(model, own, [token for token, _ in said], start=start), said, strict=True), start=1
        )
    ]
    ours, theirs = [token for token, _ in own], [token for token, _ in said]
    return Result(
        answer=result.answer,
        score=result.score,
        tokens=result.tokens,
        compared=len(stages),
        agreed=sum(bool(stage.top1) for stage in stages),
        kl=sum(stage.kl or 0.0 for stage in stages),
        first_difference=None if ours == theirs else common(ours, theirs) + 1,
    )


def forced_logits(model: Model, own: Sequence[Token], tokens: Sequence[int], *, start: int) -> Iterator[Tensor]:
    """Yield the logits ``[vocab_size]`` for each of ``tokens``, which the model reads in place of its own answer.

    As far as its answer, ``own``, is the same, they are known already. ``start`` is the position after the prompt.
    """
    known = min(common([token for token, _ in own], tokens) + 1, len(own))
    yield from (logits for _, logits in own[: min(known, len(tokens))])
    for i in range(known, len(tokens)):
        yield model.decode(model.embed([tokens[i - 1]]), position=start + i - 1)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of tokens that two answers have in common before they differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def open_reader(program: Path) -> Reader:
    """Return how a package reads questions. Raises ``PackageError``."""
    return Reader(read_card(program), load_tokenizer(find_tokenizer(program.parent)))


def read_card(program: Path) -> ModelCard:
    """Return the card of a program, which is not loaded for it. Raises ``PackageError``."""
    card = card_of(read_pte(program))
    if card is None:
        raise PackageError(f"{program} has no model card, so it is not a program that llava export made")
    return card


def package_digest(program: Path) -> str:
    """Return a SHA-256, as hex digits, of what a package answers by: its program and tokenizer."""
    parts = (structure_sha256(program), file_sha256(find_tokenizer(program.parent)))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def package_headers(programs: Iterable[Path]) -> list[dict[str, str]]:
    """Return what tells packages from others, for the file of results."""
    return [{"name": str(program), "sha256": package_digest(program)} for program in programs]


def absolute(model: str | None) -> str | None:
    """Return the absolute path of a local checkpoint or part, and other names, or None, as they are."""
    found = None if model is None or model in CHECKPOINTS else local_folder(model)
    return model if found is None else str(found.resolve())


def float_options(job: Job) -> dict[str, str | None]:
    """Return the checkpoint to compare with and its parts, by absolute paths."""
    return {"against": absolute(job.against), **{name: absolute(part) for name, part in job.parts.items()}}


def check_against(job: Job, readers: Iterable[Reader]) -> None:
    """Raise ``UserError`` if the checkpoint to compare with cannot be opened, or a package cannot be of it."""
    if job.against is not None:
        checkpoint = open_checkpoint(job.against, **job.parts)
        for reader in readers:
            check_sizes(checkpoint, reader.card)
