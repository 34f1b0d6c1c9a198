"""A conversation with a model about images: prompts in, text out piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from llava_runner.contract import TOKENIZER_BIN, TOKENIZER_MODEL, ModelCard
from llava_runner.errors import PackageError, PromptError
from llava_runner.image import prepare_image
from llava_runner.program import Program
from llava_runner.program_file import find_program
from llava_runner.prompt import prompt_chunks
from llava_runner.sampler import Sampler
from llava_runner.timings import Stage, Timings
from llava_runner.tokenizer import TextStream, Tokenizer

ImageSource = str | Path | Image.Image | np.ndarray | torch.Tensor
StopReason = Literal["eos", "length", "context"]


class Session:
    """One program, one tokenizer, and the conversation in the program's KV cache.

    Of the newest answer, ``last_ids`` are the token ids so far, ``stop_reason`` says why it ended (``"eos"``,
    ``"length"`` for ``max_new_tokens`` or ``seq_len``, ``"context"`` for a full cache; None until then), and
    ``timings`` where the time went.
    """

    stop_reason: StopReason | None

    def __init__(self, program: Program, *, tokenizer: Tokenizer, load: Stage | None = None) -> None:
        """Raises ``PackageError`` when the tokenizer is that of another model; ``load`` is what opening both took."""
        self.card: ModelCard = program.card
        if tokenizer.vocab_size != self.card.tokenizer_vocab_size:
            raise PackageError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model was trained with "
                f"{self.card.tokenizer_vocab_size}; use the tokenizer that was exported with it"
            )
        self._program = program
        self._tokenizer = tokenizer
        self._load = load or Stage()
        self._turn = 0  # counts answers, so that one given up can notice
        self.reset()

    @classmethod
    def load(
        cls, package: str | Path, *, tokenizer: str | Path | None = None, cpu_threads: int | None = None
    ) -> Session:
        """Open a package: a folder with one ``.pte`` in it, or the ``.pte`` itself, and the tokenizer next to it.

        ``cpu_threads`` is the number of threads to compute with, for the whole process. None stands for as many as
        ExecuTorch chooses.

        Raises ``PackageError`` when a file is missing or damaged, or when they do not belong together.
        """
        load = Stage()
        with load.measure():
            program_path = find_program(Path(package))
            # The tokenizer first: a wrong one is noticed before gigabytes are loaded.
            opened_tokenizer = Tokenizer.open(tokenizer or _find_tokenizer(program_path.parent))
            program = Program.open(program_path, cpu_threads=cpu_threads)
        return cls(program, tokenizer=opened_tokenizer, load=load)

    def reset(self) -> None:
        """Forget the conversation."""
        self._position = 0  # rows in the KV cache
        self._unread: list[int] = []  # the newest token of an answer: sampled, but not in the cache yet
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
        """Forget the conversation, read image and prompt, and return an iterator over the text of the answer.

        ``image`` is anything ``prepare_image`` takes, and ``prompt`` what ``prompt_chunks`` takes. ``seq_len`` bounds
        the positions of prompt and answer together; ``image_aspect_ratio`` stands in for the model's own.

        Raises ``PromptError`` and ``ImageError``, always from this call and before anything is run.
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
        """The next turn of the conversation, with an image of its own or none; reads only what is new.

        An answer that was not taken to its end counts as far as it was taken. Raises as ``generate`` does, and then
        leaves the conversation as it was.
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
        """Read one turn into the cache from row ``start`` on; the answer may fill it up to ``limit``."""
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

        # Nothing the caller gave can be wrong any more.
        if start == 0:
            self.reset()
        self._begin_answer(timings)
        logits = self._read_turn(chunks, pixels, start=start)
        # Only now: a turn whose reading is interrupted leaves the conversation as it was.
        self._position, self._unread = end, []

        budget = limit - end
        stop_reason: StopReason = "context" if limit == self.card.max_context_len else "length"
        if max_new_tokens is not None and max_new_tokens <= budget:
            budget, stop_reason = max_new_tokens, "length"
        return self._sample_answer(logits, sampler=sampler, budget=budget, stop_reason=stop_reason, turn=self._turn)

    def _begin_answer(self, timings: Timings) -> None:
        self._turn += 1
        self.timings = timings
        self.last_ids: list[int] = []
        self.stop_reason = None

    def _position_limit(self, seq_len: int | None) -> int:
        if seq_len is None:
            return self.card.max_context_len
        if not 1 <= seq_len <= self.card.max_context_len:
            raise PromptError(f"seq_len {seq_len}: it must be from 1 to the context, {self.card.max_context_len}")
        return seq_len

    def _tokenize(self, prompt: str, *, has_image: bool, start: int) -> list[list[int]]:
        """Ids of the chunks before and after the image (or of the one chunk); the first begins the turn."""
        first_turn = start == 0
        texts = prompt_chunks(prompt, template=self.card.prompt, has_image=has_image, first_turn=first_turn)
        chunks = [self._tokenizer.encode(text) for text in texts]
        if first_turn:
            opening = [self.card.bos_id]
        else:
            # An answer that was cut short is closed as if it had ended.
            ended = self._unread and self._unread[-1] in self.card.eos_ids
            opening = self._unread if ended else [*self._unread, self.card.eos_ids[0]]
        return [[*opening, *chunks[0]], *chunks[1:]]

    def _prepare_image(self, image: ImageSource, image_aspect_ratio: str | None) -> np.ndarray:
        return prepare_image(
            image,
            image_size=self.card.image_size,
            image_mean=self.card.image_mean,
            image_aspect_ratio=image_aspect_ratio or self.card.image_aspect_ratio,
        )

    def _read_turn(self, chunks: Sequence[list[int]], pixels: np.ndarray | None, *, start: int) -> torch.Tensor:
        """Run everything before the answer -> the logits of its first token."""
        features = []
        if pixels is not None:
            with self.timings.image.measure(self.card.num_image_tokens):
                features = [self._program.encode_image(pixels)]
        with self.timings.prompt.measure(0) as prompt:
            before, *after = (self._program.embed(chunk) for chunk in chunks if chunk)
            inputs_embeds = torch.cat([before, *features, *after], dim=1)
            prompt.count = inputs_embeds.shape[1]
            return self._program.decode(inputs_embeds, position=start)

    def _sample_answer(
        self,
        logits: torch.Tensor,
        *,
        sampler: Sampler,
        budget: int,
        stop_reason: StopReason,
        turn: int,
    ) -> Iterator[str]:
        """Yield the text of up to ``budget`` tokens. Between any two steps the session is ready for another turn."""
        stream = TextStream(self._tokenizer)
        for index in range(budget):
            self._require_current(turn)
            if index:
                with self.timings.eval.measure():
                    logits = self._program.decode(self._program.embed(self._unread), position=self._position)
                self._position, self._unread = self._position + 1, []
            with self.timings.sample.measure():
                token_id = sampler.sample(logits)
            self._unread = [token_id]
            self.last_ids.append(token_id)
            if token_id in self.card.eos_ids:
                self.stop_reason = "eos"
                break
            if text := stream.push(token_id):
                yield text
        else:
            self._require_current(turn)
            self.stop_reason = stop_reason
        if text := stream.flush():
            yield text

    def _require_current(self, turn: int) -> None:
        if turn != self._turn:
            raise RuntimeError("this answer was given up when the session began another one or was reset")


def _check_room(*, start: int, end: int, num_image_tokens: int, limit: int) -> None:
    if end < limit:
        return
    needed = f"the prompt takes {end - start} positions"
    if num_image_tokens:
        needed += f" ({num_image_tokens} of them the image)"
    if start:
        needed += f" after the {start} of the conversation so far"
    raise PromptError(f"{needed} and the answer needs at least 1, but the limit is {limit}; shorten it or start afresh")


def _find_tokenizer(folder: Path) -> Path:
    for name in (TOKENIZER_MODEL, TOKENIZER_BIN):
        if (folder / name).exists():
            return folder / name
    raise PackageError(f"{folder} has neither {TOKENIZER_MODEL} nor {TOKENIZER_BIN}; name the tokenizer's path")
