"""The golden record: what the float model saw and answered. It lets a program be verified without the checkpoint."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.config import LlavaConfig
from llava_export.errors import ExportError
from llava_export.pte.agreement import Question, agreement
from llava_export.reference import FloatReference
from llava_runner.contract import IMAGE_PLACEHOLDER, MIN_IMAGE_SIDE, ModelCard
from llava_runner.documents import parse_object
from llava_runner.errors import PackageError
from llava_runner.image import load_image, prepare_image_for
from llava_runner.model import Model, greedy
from llava_runner.prompt import Chunk, chunk_text, question_chunks
from llava_runner.timings import peak_memory

HEADER_LENGTH = struct.Struct("<Q")  # with which a safetensors file begins
MAX_TOKENS = 8  # of the answer
MAX_BYTES = 256 << 20  # that are read of a file; LLaVA-1.5's have 6 MB
# The type and the number of dimensions of each tensor in a golden record.
TENSORS = {
    "image": (torch.uint8, 3), "ids_before": (torch.int64, 1), "ids_after": (torch.int64, 1),
    "features": (torch.float16, 2), "tokens": (torch.int64, 1), "logits": (torch.float32, 2),
}  # fmt: skip


@dataclass(frozen=True)
class GoldenRecord:
    """One question about one image, and the float model's answer.

    ``image`` is uint8 ``[3, H, W]``; ``ids_before`` and ``ids_after`` are int64, the prompt's tokens before and after
    it; ``features`` float16 ``[num_image_tokens, hidden_size]``; ``tokens`` int64 ``[N]``, the greedy answer;
    ``logits`` float32 ``[N, vocab_size]``: ``tokens[i]`` was chosen from row i. ``prompt`` is the question as the model
    reads it, with ``<image>`` for the image, and ``agreed`` the library that made the same tokens of it, or "". Of a
    language model alone, ``ids_before`` is the whole prompt, and ``image``, ``features`` and ``ids_after`` are empty.
    """

    image: Tensor
    ids_before: Tensor
    ids_after: Tensor
    features: Tensor
    tokens: Tensor
    logits: Tensor
    prompt: str
    agreed: str

    def to_bytes(self) -> bytes:
        """Return the content of the file, in the safetensors format."""
        tensors = {name: getattr(self, name).contiguous() for name in TENSORS}
        return save(tensors, metadata={"prompt": self.prompt, "agreed": self.agreed})

    @classmethod
    def load(cls, path: Path) -> GoldenRecord:
        """Read a file. Raises ``PackageError`` if it is missing, damaged or something else."""
        if not path.is_file():
            raise PackageError(f"{path} is missing: without the golden record nothing can be compared")
        if path.stat().st_size > MAX_BYTES:
            raise PackageError(f"{path} is not a golden record: it is larger than {MAX_BYTES:,} bytes")
        try:
            content = path.read_bytes()  # since the library takes no path that is not Unicode
            tensors = load(content)
            (length,) = HEADER_LENGTH.unpack_from(content)
            header = parse_object(content[HEADER_LENGTH.size :][:length], what=str(path), error=PackageError)
            metadata = header.section("__metadata__")
            return cls(**tensors, prompt=metadata.text("prompt"), agreed=metadata.text("agreed"))
        except (SafetensorError, TypeError, ValueError, KeyError) as error:
            raise PackageError(f"{path} is not a golden record, or damaged: {error}") from error

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for tensors of other types or numbers of dimensions, and for values that are none."""
        for name, (dtype, dimensions) in TENSORS.items():
            tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.dim() != dimensions:
                raise ValueError(f"{name} is {tensor.dtype} with {tensor.dim()} dimensions")
            if not (tensor.isfinite() if dtype.is_floating_point else tensor >= 0).all():
                raise ValueError(f"{name} has a value that cannot be one")

    def check(self, card: ModelCard) -> None:
        """Raise ``PackageError`` unless the record can be one of the model that the card describes."""
        answer = len(self.tokens)
        expected = {"features": (card.num_image_tokens, card.hidden_size), "logits": (answer, card.vocab_size)}
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise PackageError(
                    f"the golden record is of another model: its {name} are {list(getattr(self, name).shape)}, "
                    f"the program's {list(shape)}"
                )
        channels, *sides = self.image.shape
        has_image = card.num_image_tokens > 0
        least, most = (MIN_IMAGE_SIDE, card.image_size) if has_image else (0, 0)
        if channels != 3 or not all(least <= side <= most for side in sides):
            raise PackageError(f"the golden record's image of {list(self.image.shape)} does not fit the program")
        ids = torch.cat([self.ids_before, self.ids_after, self.tokens])
        length = len(ids) + card.num_image_tokens
        has_all = len(self.ids_before) > 0 and len(self.tokens) > 0 and (len(self.ids_after) > 0) == has_image
        if not has_all or int(ids.max()) >= card.vocab_size or length > card.max_context_len:
            raise PackageError("the golden record's tokens do not fit the program")


def num_positions(question: Question, config: LlavaConfig) -> int:
    """Return the positions that a question and the longest answer take."""
    return len(question.ids_before) + config.num_image_tokens + len(question.ids_after) + MAX_TOKENS


def golden_question(
    checkpoint: Checkpoint, *, card: ModelCard, chat_template: str | None = None, is_checked: bool = True
) -> Question:
    """Return the family's question about the sample image, or its text where the model sees none.

    Raises ``ExportError`` if the context cannot hold it.
    """
    tokenizer = checkpoint.tokenizer.chat_tokenizer(bos_id=card.bos_id)
    chunks = golden_chunks(checkpoint.family.question, card)
    before, *rest = tokenizer.encode_turn(chunks)
    pixels = prepare_image_for(card, load_image(SAMPLE_IMAGE)) if rest else np.zeros((3, 0, 0), np.uint8)
    after = rest[0] if rest else []
    question = Question(pixels, before, after, card.eos_ids, list(map(chunk_text, chunks)), chat_template, is_checked)
    length = num_positions(question, checkpoint.config)
    if length > card.max_context_len:
        raise ExportError(
            f"a context of {card.max_context_len} positions is too short: {'one image, ' if rest else ''}a question "
            f"and a short answer take {length}"
        )
    return question


def golden_chunks(question: str, card: ModelCard) -> tuple[Chunk, ...]:
    """Return the text of a golden question before and after its image, or all of it where the model sees none."""
    return question_chunks(question, template=card.prompt, num_images=min(card.num_image_tokens, 1), first_turn=True)


def question_rows(model: Model, image: np.ndarray, before: list[int], after: list[int]) -> tuple[Tensor, Tensor]:
    """Return the features ``float32 [1, num_image_tokens, hidden_size]`` of an image, which may be empty, and all rows.

    Those are the rows ``[1, T, hidden_size]`` that the decoder reads of a question.
    """
    if not image.size:
        rows = model.embed(before)
        return rows[:, :0], rows
    features = model.encode_image(image)
    return features, torch.cat([model.embed(before), features, model.embed(after)], dim=1)


def record(model: Model, question: Question, *, agreed: str = "", max_tokens: int = MAX_TOKENS) -> GoldenRecord:
    """Ask the model. Return the question with its greedy answer: up to ``max_tokens``, or until it ends."""
    features, rows = question_rows(model, question.image, question.ids_before, question.ids_after)
    tokens, logits = zip(*greedy(model, rows, max_tokens=max_tokens, eos_ids=question.eos_ids), strict=True)
    return GoldenRecord(
        image=torch.from_numpy(question.image),
        ids_before=torch.tensor(question.ids_before),
        ids_after=torch.tensor(question.ids_after, dtype=torch.int64),
        features=features[0].to(torch.float16),
        tokens=torch.tensor(tokens),
        logits=torch.stack(logits),
        prompt=IMAGE_PLACEHOLDER.join(question.texts),
        agreed=agreed,
    )


@dataclass(frozen=True)
class FloatAnswer:
    """The content of the golden record's file, and what it took to make it.

    These are bytes because tensors do not outlive the process that sends them. ``peak_bytes`` is the most memory that
    the process had resident, and ``beside_bytes`` the most that its parent had by its end.
    """

    golden: bytes
    seconds: float
    peak_bytes: int
    beside_bytes: int


def float_answer(
    open_checkpoint: Callable[[], Checkpoint], question: Question, *, on_step: Callable[[], None]
) -> FloatAnswer:
    """Ask the float model of a checkpoint. Return its answer, with the time and memory that it took.

    Raises ``CheckpointError`` if transformers is installed and reads the question otherwise.

    To be run in a process of its own, because lowering keeps one processor busy. ``on_step`` is called ``num_steps``
    times, if the answer is not shorter than ``MAX_TOKENS``.
    """
    start = time.perf_counter()
    checkpoint = open_checkpoint()
    agreed = agreement(open_checkpoint, question) if question.is_checked else ""
    model = checkpoint.build_model(max_context_len=num_positions(question, checkpoint.config))
    reference = FloatReference(model, weights=checkpoint.weights, on_block=on_step)
    golden = record(reference, question, agreed=agreed)
    beside = peak_memory(os.getppid())
    return FloatAnswer(golden.to_bytes(), time.perf_counter() - start, peak_memory() or 0, beside or 0)


def num_steps(config: LlavaConfig) -> int:
    """Return how often ``float_answer`` calls ``on_step`` when the answer has ``MAX_TOKENS`` tokens."""
    per_token = config.text.num_hidden_layers + 3  # embedding, norm and head
    return config.num_vision_layers + MAX_TOKENS * per_token
