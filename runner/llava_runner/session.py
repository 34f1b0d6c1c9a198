"""A conversation with a model about images. It takes prompts and returns the text of the answers as it comes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image

from llava_runner.contract import TOKENIZER_BIN, TOKENIZER_MODEL, ModelCard
from llava_runner.errors import PackageError, PromptError
from llava_runner.image import prepare_image
from llava_runner.model import ModelWithCard
from llava_runner.program import Program
from llava_runner.program_file import check_whole, find_program
from llava_runner.prompt import prompt_chunks
from llava_runner.sampler import Sampler
from llava_runner.timings import Stage, Timings
from llava_runner.tokenizer import TextStream, Tokenizer

ImageSource = (
    str | os.PathLike[Any] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | torch.Tensor
)
StopReason = Literal["eos", "length", "context"]


class Session:
    """A model, its tokenizer, and the conversation in the model's KV cache.

    Three attributes describe the newest answer. ``last_ids`` are its token ids so far. ``stop_reason`` is None until it
    ends, then ``"eos"``, ``"length"`` (``max_new_tokens`` or ``seq_len`` is reached) or ``"context"`` (the cache is
    full). ``timings`` says how long each stage took.
    """

    stop_reason: StopReason | None

    def __init__(self, model: ModelWithCard, *, tokenizer: Tokenizer, load: Stage | None = None) -> None:
        """Begin with an empty conversation. ``load`` is the time that loading took, for ``timings``.

        Raises ``PackageError`` if the tokenizer is that of another model.
        """
        self.card: ModelCard = model.card
        if tokenizer.vocab_size != self.card.tokenizer_vocab_size:
            raise PackageError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model was trained with "
                f"{self.card.tokenizer_vocab_size}; use the tokenizer that was exported with it"
            )
        self._model = model
        self._tokenizer = tokenizer
        self._load = load or Stage()
        self._num_answers = 0  # so far; an older answer sees by it that it was replaced
        self.reset()

    @classmethod
    def load(
        cls,
        package: str | Path,
        *,
        tokenizer: str | Path | None = None,
        cpu_threads: int | None = None,
        check: bool = False,
    ) -> Session:
        """Load a package: a folder with one ``.pte``, or the ``.pte`` itself. The tokenizer is found in its folder.

        ``cpu_threads`` is the number of threads to compute with, for the whole process. None stands for as many as
        ExecuTorch chooses. With ``check``, all of the program is compared with its manifest first; otherwise weights
        are not compared.

        Raises ``PackageError`` if a file is missing or damaged, or if the files do not belong together.
        """
        load = Stage()
        with load.measure():
            program_path = find_program(Path(package))
            # The tokenizer comes first, so that a missing one is found before gigabytes are loaded.
            opened_tokenizer = Tokenizer.open(tokenizer or _find_tokenizer(program_path.parent))
            if check:
                check_whole(program_path)
            program = Program.open(program_path, cpu_threads=cpu_threads)
        return cls(program, tokenizer=opened_tokenizer, load=load)

    def reset(self) -> None:
        """Forget the conversation."""
        self._position = 0  # rows in the KV cache
        self._uncached: list[int] = []  # the newest token of an answer: sampled, but not yet in the KV cache
        self._begin_answer(Timings(load=self._load))

    def generate(
        self,
        image: ImageSource | None,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        seq_len: int | None = None,
        image_aspect_ratio: str | None = None,
    ) -> Iterator[str]:
        """Forget the conversation, read an image and a prompt, and return an iterator over the text of the answer.

        ``image`` is anything that ``prepare_image`` takes, and ``prompt`` is one that ``prompt_chunks`` takes.
        ``seq_len`` limits the positions of prompt and answer together. ``image_aspect_ratio`` replaces the card's.

        Raises ``PromptError`` and ``ImageError`` from this call, not from the iterator, and before the model runs.
        """
        return self._answer(
            image,
            prompt,
            start=0,
            limit=self._position_limit(seq_len),
            sampler=Sampler(temperature=temperature, top_p=top_p, seed=seed),
            max_new_tokens=max_new_tokens,
            image_aspect_ratio=image_aspect_ratio,
        )

    def chat(
        self,
        question: str,
        *,
        image: ImageSource | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        image_aspect_ratio: str | None = None,
    ) -> Iterator[str]:
        """Read the next turn of the conversation, and return an iterator over the text of the answer.

        The turn may have an image of its own. Earlier turns are not read again. If the caller did not take the last
        answer to its end, the part it took is part of the conversation. Raises as ``generate`` does, and then leaves
        the conversation as it was.
        """
        return self._answer(
            image,
            question,
            start=self._position,
            limit=self.card.max_context_len,
            sampler=Sampler(temperature=temperature, top_p=top_p, seed=seed),
            max_new_tokens=max_new_tokens,
            image_aspect_ratio=image_aspect_ratio,
        )

    def _answer(
        self,
        image: ImageSource | None,
        prompt: str,
        *,
        start: int,
        limit: int,
        sampler: Sampler,
        max_new_tokens: int | None,
        image_aspect_ratio: str | None,
    ) -> Iterator[str]:
        """Read one turn from position ``start`` on, and return the answer, which ends at position ``limit`` at most."""
        if max_new_tokens is not None and max_new_tokens < 1:
            raise PromptError(f"max_new_tokens {max_new_tokens}: it must be at least 1")
        timings = Timings(load=self._load)
        with timings.prompt.measure(0):
            chunks = self._tokenize(prompt, has_image=image is not None, start=start)
        num_image_tokens = 0 if image is None else self.card.num_image_tokens
        end = start + sum(len(chunk) for chunk in chunks) + num_image_tokens
        _check_room(start=start, end=end, num_image_tokens=num_image_tokens, limit=limit)
        pixels = None
        if image is not None:
            with timings.image.measure(0):
                pixels = self._prepare_image(image, image_aspect_ratio)

        # From here on, no mistake of the caller can stop this turn.
        if start == 0:
            self.reset()
        self._begin_answer(timings)
        logits = self._prefill(chunks, pixels, start=start)
        # Only now is the turn part of the conversation: if prefill is interrupted, all stays as it was.
        self._position, self._uncached = end, []

        budget = limit - end
        stop_reason: StopReason = "context" if limit == self.card.max_context_len else "length"
        if max_new_tokens is not None and max_new_tokens <= budget:
            budget, stop_reason = max_new_tokens, "length"
        return self._sample_answer(
            logits, sampler=sampler, budget=budget, stop_reason=stop_reason, number=self._num_answers
        )

    def _begin_answer(self, timings: Timings) -> None:
        """Clear what describes the newest answer."""
        self._num_answers += 1
        self.timings = timings
        self.last_ids: list[int] = []
        self.stop_reason = None

    def _position_limit(self, seq_len: int | None) -> int:
        """Return the position at which an answer ends at the latest. Raises ``PromptError``."""
        if seq_len is None:
            return self.card.max_context_len
        if not 1 <= seq_len <= self.card.max_context_len:
            raise PromptError(f"seq_len {seq_len}: it must be from 1 to the context, {self.card.max_context_len}")
        return seq_len

    def _tokenize(self, prompt: str, *, has_image: bool, start: int) -> list[list[int]]:
        """Return the token ids before and after the image, or of the whole turn if there is no image."""
        first_turn = start == 0
        texts = prompt_chunks(prompt, template=self.card.prompt, has_image=has_image, first_turn=first_turn)
        chunks = [self._tokenizer.encode(text) for text in texts]
        if first_turn:
            first_ids = [self.card.bos_id]
        else:
            # An answer that was cut short gets the end-of-sequence token that it lacks.
            has_eos = self._uncached and self._uncached[-1] in self.card.eos_ids
            first_ids = self._uncached if has_eos else [*self._uncached, self.card.eos_ids[0]]
        return [[*first_ids, *chunks[0]], *chunks[1:]]

    def _prepare_image(self, image: ImageSource, image_aspect_ratio: str | None) -> np.ndarray:
        """Return the image as ``uint8 [3, H, W]`` for the vision encoder. Raises ``ImageError``."""
        return prepare_image(
            image,
            image_size=self.card.image_size,
            image_mean=self.card.image_mean,
            image_aspect_ratio=image_aspect_ratio or self.card.image_aspect_ratio,
        )

    def _prefill(self, chunks: Sequence[list[int]], pixels: np.ndarray | None, *, start: int) -> torch.Tensor:
        """Run the model on image and prompt. Return the logits ``[vocab_size]`` of the answer's first token."""
        features = []
        if pixels is not None:
            with self.timings.image.measure(self.card.num_image_tokens):
                features = [self._model.encode_image(pixels)]
        with self.timings.prompt.measure(0) as prompt:
            before, *after = (self._model.embed(chunk) for chunk in chunks if chunk)
            inputs_embeds = torch.cat([before, *features, *after], dim=1)
            prompt.count = inputs_embeds.shape[1]
            return self._model.decode(inputs_embeds, position=start)

    def _sample_answer(
        self,
        logits: torch.Tensor,
        *,
        sampler: Sampler,
        budget: int,
        stop_reason: StopReason,
        number: int,
    ) -> Iterator[str]:
        """Yield the text of at most ``budget`` tokens; ``stop_reason`` is the reason if none of them is EOS.

        After each token the session is ready for another turn. Raises ``RuntimeError`` if the answer, which is that of
        this ``number``, has been replaced by another.
        """
        stream = TextStream(self._tokenizer)
        for index in range(budget):
            self._require_newest(number)
            if index:
                with self.timings.eval.measure():
                    logits = self._model.decode(self._model.embed(self._uncached), position=self._position)
                self._position, self._uncached = self._position + 1, []
            with self.timings.sample.measure():
                token_id = sampler.sample(logits)
            self._uncached = [token_id]
            self.last_ids.append(token_id)
            if token_id in self.card.eos_ids:
                self.stop_reason = "eos"
                break
            if text := stream.push(token_id):
                yield text
        else:
            self._require_newest(number)
            self.stop_reason = stop_reason
        if text := stream.flush():
            yield text

    def _require_newest(self, number: int) -> None:
        """Raise ``RuntimeError`` unless the answer of this number is the newest."""
        if number != self._num_answers:
            raise RuntimeError("this answer was given up when the session began another one or was reset")


def _check_room(*, start: int, end: int, num_image_tokens: int, limit: int) -> None:
    """Raise ``PromptError`` if a prompt from position ``start`` to ``end`` leaves no position for an answer."""
    if end < limit:
        return
    needed = f"the prompt takes {end - start} positions"
    if num_image_tokens:
        needed += f" ({num_image_tokens} of them the image)"
    if start:
        needed += f" after the {start} of the conversation so far"
    raise PromptError(f"{needed} and the answer needs at least 1, but the limit is {limit}; shorten it or start afresh")


def _find_tokenizer(folder: Path) -> Path:
    """Return the tokenizer in a package's folder. Raises ``PackageError`` if there is none."""
    for name in (TOKENIZER_MODEL, TOKENIZER_BIN):
        if (folder / name).exists():
            return folder / name
    raise PackageError(f"{folder} has neither {TOKENIZER_MODEL} nor {TOKENIZER_BIN}; name the tokenizer's path")
