"""A conversation with a model about images. It takes prompts and returns the text of the answers as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llava_runner.answer import Answer, AnswerSoFar, StopReason
from llava_runner.answer_options import AnswerOptions
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.checks import MAX_LOGPROBS, answer_limits, check_room, whole_number
from llava_runner.contract import ModelCard
from llava_runner.exclusive import ExclusiveModel
from llava_runner.history import History
from llava_runner.image import prepare_image_for
from llava_runner.image.kinds import Images, listed_images
from llava_runner.model import ModelWithCard
from llava_runner.paths import with_home
from llava_runner.program import Program
from llava_runner.program_file import check_whole, find_program, find_tokenizer
from llava_runner.sampler import Sampler
from llava_runner.stop_strings import StopStrings
from llava_runner.timings import Stage, Timings
from llava_runner.tokenizer import TextStream
from llava_runner.tokenizer_file import AnyTokenizer, load_tokenizer

if TYPE_CHECKING:
    from typing import Unpack  # since Python 3.11; others only read the code


class Session:
    """A model, its tokenizer, and the conversation in the model's KV cache.

    A session may be used from several threads: one computes while the others wait. There is one conversation, so an
    answer that is begun from any thread replaces the one before, whose iterator then raises ``RuntimeError``. ``ask``
    takes its answer to the end before another thread gets its turn.

    A child process that is made by ``os.fork`` cannot use a session of its parent: ExecuTorch's threads are not copied.
    Each call there raises ``RuntimeError``, and so does any call after ``close``.
    """

    _newest: AnswerSoFar | None

    def __init__(self, model: ModelWithCard, *, tokenizer: AnyTokenizer, load: Stage | None = None) -> None:
        """Begin with an empty conversation. ``load`` is the time that loading took, for ``timings``.

        No other session may use the same model. Raises ``PackageError`` if the tokenizer is that of another model.
        """
        self.card: ModelCard = model.card
        self._tokenizer = ChatTokenizer.of(self.card, tokenizer)
        self._history = History(self.card, self._tokenizer)
        self._model = ExclusiveModel(model)
        self._load = load or Stage()
        self._cancels = 0  # how often ``cancel`` was called; an answer sees by it that it is meant
        self._forget()

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
            program_path = find_program(with_home(str(package)))
            # The tokenizer comes first, so that a missing one is found before gigabytes are loaded.
            opened_tokenizer = load_tokenizer(
                with_home(str(tokenizer)) if tokenizer else find_tokenizer(program_path.parent)
            )
            if check:
                check_whole(program_path)
            program = Program.open(program_path, cpu_threads=cpu_threads)
        return cls(program, tokenizer=opened_tokenizer, load=load)

    def __enter__(self) -> Session:
        """Return the session. At the end of the ``with`` block it is closed."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the session."""
        self.close()

    def __repr__(self) -> str:
        """Return the model's name, and how much of its context is used or that the session is closed."""
        used = "closed" if self._model.is_closed else f"{self.position} of {self.card.max_context_len} positions"
        return f"<Session with {self.card.source}, {used}>"

    def close(self) -> None:
        """Free the model's memory. An answer that is being made ends first, as by ``cancel``; ``last`` stays."""
        self.cancel()
        self._model.close()

    def reset(self) -> None:
        """Forget the conversation, and give up an answer that was not taken to its end."""
        with self._model.alone():
            self._forget()

    def cancel(self) -> None:
        """End the answer that is being made, from any thread, with the stop reason ``"cancelled"``.

        Its reader gets the text so far, and no exception. The model finishes the token, or the prompt, that it is at.
        Nothing happens if no answer is being made.
        """
        self._cancels += 1

    @property
    def position(self) -> int:
        """The number of positions that the conversation takes."""
        return self._history.position + len(self._history.uncached)

    @property
    def room(self) -> int:
        """The number of positions that are left in the context."""
        return self.card.max_context_len - self.position

    @property
    def last(self) -> Answer:
        """The newest answer as far as it has come, in any thread. Before the first it is one without tokens."""
        if self._newest is None:
            return Answer(ids=(), text="", timings=Timings(load=self._load), stop_reason=None)
        return self._newest.now()

    def ask(self, image: Images | None, prompt: str, **options: Unpack[AnswerOptions]) -> str:
        """Return the text of the whole answer that ``generate`` gives. No other thread comes between.

        Raises ``PromptError`` and ``ImageError``.
        """
        with self._model.alone():
            return "".join(self.generate(image, prompt, **options))

    def generate(self, image: Images | None, prompt: str, **options: Unpack[AnswerOptions]) -> Iterator[str]:
        """Forget the conversation, read an image and a prompt, and return an iterator over the text of the answer.

        The model reads image and prompt before this call returns, which takes most of the time of a short answer. The
        iterator computes one token after the other.

        ``image`` is anything that ``prepare_image`` takes, or a list of several. ``prompt`` is one that
        ``prompt_chunks`` takes. The options are those of ``AnswerOptions``. ``seq_len`` limits the positions of prompt
        and answer together. ``image_aspect_ratio`` replaces the card's.
        ``Sampler`` explains ``temperature``, ``top_p``, ``top_k``, ``min_p``, ``repetition_penalty`` and ``seed``. All
        but the seed, and ``max_new_tokens``, are those of ``card.generation`` if they are None. The text ends before
        the first of the texts in ``stop``, if it comes. With ``logprobs``, ``last`` has the probability of each token,
        and of so many that were the most likely in its place.

        Raises ``PromptError`` and ``ImageError`` from this call, not from the iterator, and before the model runs.
        """
        return self._answer(image, prompt, is_question=False, **options)

    def chat(self, question: str, *, image: Images | None = None, **options: Unpack[AnswerOptions]) -> Iterator[str]:
        """Read the next turn of the conversation, and return an iterator over the text of the answer.

        The question is text, and the model's template is put around it, even if ``<image>`` or ``ASSISTANT:`` is in it.
        The turn may have an image of its own. Earlier turns are not read again. If the caller did not take the last
        answer to its end, the part it took is part of the conversation. ``seq_len`` limits the positions of the whole
        conversation. Computes and raises as ``generate`` does; a mistake leaves the conversation as it was.
        """
        return self._answer(image, question, is_question=True, **options)

    def _answer(
        self,
        image: Images | None,
        prompt: str,
        *,
        is_question: bool,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: int | None = None,
        seq_len: int | None = None,
        image_aspect_ratio: str | None = None,
    ) -> Iterator[str]:
        """Read a question as the next turn, or a prompt from the beginning. Return the answer."""
        sampler = Sampler.of(
            self.card,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        stops = StopStrings(stop)
        limit, max_new_tokens = answer_limits(self.card, seq_len=seq_len, max_new_tokens=max_new_tokens)
        if logprobs is not None:
            logprobs = whole_number("logprobs", logprobs, least=0, most=MAX_LOGPROBS)
        images = listed_images(image)
        with self._model.alone() as model:
            cancels = self._cancels
            timings = Timings(load=self._load)
            start = self._history.position if is_question else 0
            with timings.prompt.measure(0):
                chunks = self._history.tokenize(prompt, is_question=is_question, num_images=len(images))
            num_image_tokens = len(images) * self.card.num_image_tokens
            end = start + sum(len(chunk) for chunk in chunks) + num_image_tokens
            check_room(start=start, end=end, num_image_tokens=num_image_tokens, limit=limit)
            with timings.image.measure(0):
                pixels = [prepare_image_for(self.card, it, image_aspect_ratio=image_aspect_ratio) for it in images]

            # From here on, no mistake of the caller can stop this turn.
            budget = limit - end
            reason: StopReason = "context" if limit == self.card.max_context_len else "length"
            if max_new_tokens <= budget:
                budget, reason = max_new_tokens, "length"
            if start == 0:
                self._forget()
            answer = AnswerSoFar(
                TextStream(self._tokenizer),
                stops,
                timings=timings,
                eos_ids=self.card.eos_ids,
                budget=budget,
                reason=reason,
                logprobs=logprobs,
            )
            self._newest = answer
            logits = self._history.read(model, chunks, pixels, timings=timings)
        return self._pieces(answer, logits, sampler=sampler, cancels=cancels)

    def _pieces(self, answer: AnswerSoFar, logits: np.ndarray, *, sampler: Sampler, cancels: int) -> Iterator[str]:
        """Yield the text of an answer. After each token the session is ready for another turn.

        Raises ``RuntimeError`` if the answer has been replaced by another.
        """
        while answer.stop_reason is None:
            with self._model.alone() as model:
                if answer is not self._newest:
                    raise RuntimeError("this answer was given up when the session began another one or was reset")
                if self._cancels != cancels:
                    text = answer.end("cancelled")
                else:
                    if answer.ids:
                        logits = self._history.read_newest(model, timings=answer.timings)
                    with answer.timings.sample.measure():
                        token_id = sampler.sample(logits, self._history.ids)
                    self._history.add(token_id)
                    text = answer.add(token_id, logits)
            if text:
                yield text

    def _forget(self) -> None:
        """Forget the conversation and the newest answer."""
        self._history.forget()
        self._newest = None
