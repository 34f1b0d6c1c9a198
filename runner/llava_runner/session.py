"""A conversation with a model about images. It takes prompts and returns the text of the answers as it comes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llava_runner.answer import Answer, AnswerSoFar
from llava_runner.answer_options import AnswerOptions, CheckedOptions
from llava_runner.contract import ModelCard
from llava_runner.conversation import Conversation
from llava_runner.engine_library import EngineName
from llava_runner.errors import PromptError, UserError
from llava_runner.exclusive import ExclusiveConversation
from llava_runner.image.kinds import Images, listed_images
from llava_runner.open_conversation import open_conversation
from llava_runner.timings import Timings

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

    def __init__(self, conversation: Conversation) -> None:
        """Take over a conversation, which nothing else may use from now on."""
        self.card: ModelCard = conversation.card
        self.engine: EngineName = conversation.engine  # what computes
        self._conversation = ExclusiveConversation(conversation)
        self._cancels = 0  # how often ``cancel`` was called; an answer sees by it that it is meant
        self._newest = None

    @classmethod
    def load(
        cls,
        package: str | Path,
        *,
        tokenizer: str | Path | None = None,
        cpu_threads: int | None = None,
        check: bool = False,
        engine: EngineName | None = None,
        draft_model_path: str | Path | None = None,
    ) -> Session:
        """Load a package: a folder with one ``.pte``, or the ``.pte`` itself. The tokenizer is found in its folder.

        ``cpu_threads`` is the number of threads to compute with, for the whole process. None stands for as many as
        ExecuTorch chooses. With ``check``, all of the program is compared with its manifest first; otherwise weights
        are not compared. ``engine`` is what computes: ``"cpp"`` the C++ runner, without torch, ``"python"`` the Python
        runtime of ExecuTorch. None stands for the first where it is built and the package's tokenizer is one that it
        reads, unless this process has loaded the second: they cannot be in one. ``draft_model_path`` is a package with
        the same tokenizer, whose small model guesses tokens in place of prompt lookup; it is not loaded where the model
        cannot check guesses (``card.logits_to_keep`` is 1).

        Raises ``PackageError`` if a file is missing or damaged, or if the files do not belong together.
        """
        conversation = open_conversation(
            package,
            tokenizer=tokenizer,
            cpu_threads=cpu_threads,
            check=check,
            engine=engine,
            draft_model_path=draft_model_path,
        )
        return cls(conversation)

    def __enter__(self) -> Session:
        """Return the session. At the end of the ``with`` block it is closed."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the session."""
        self.close()

    def __repr__(self) -> str:
        """Return the model's name, and how much of its context is used or that the session is closed."""
        used = "closed" if self._conversation.is_closed else f"{self.position} of {self.card.max_context_len} positions"
        return f"<Session with {self.card.source}, {used}>"

    def close(self) -> None:
        """Free the model's memory; ``last`` stays.

        An ``ask`` of another thread ends first, as by ``cancel``. Other iterators raise ``RuntimeError`` from now on.
        """
        self.cancel()
        self._conversation.close()

    def reset(self) -> None:
        """Forget the conversation, and give up an answer that was not taken to its end."""
        with self._conversation.alone() as conversation:
            conversation.forget()
            self._newest = None

    def cancel(self) -> None:
        """End the answer that is being made, from any thread, with the stop reason ``"cancelled"``.

        Its reader gets the text so far, and no exception. The model finishes the token, or the prompt, that it is at.
        Nothing happens if no answer is being made.
        """
        self._cancels += 1

    @property
    def position(self) -> int:
        """The number of positions that the conversation takes."""
        return self._conversation.position

    @property
    def room(self) -> int:
        """The number of positions that are left in the context."""
        return self.card.max_context_len - self.position

    @property
    def last(self) -> Answer:
        """The newest answer as far as it has come, in any thread. Before the first it is one without tokens."""
        if self._newest is None:
            return Answer(ids=(), text="", timings=Timings(load=self._conversation.load), stop_reason=None)
        return self._newest.now()

    def ask(self, image: Images | None, prompt: str, **options: Unpack[AnswerOptions]) -> str:
        """Return the text of the whole answer that ``generate`` gives. No other thread comes between.

        Raises ``PromptError`` and ``ImageError``.
        """
        with self._conversation.alone():
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
        and of so many that were the most likely in its place. ``logits_processor`` is called before each token with the
        ids of the answer so far and the logits ``float32 [vocab_size]``, which it may change: -infinity rules a token
        out. Up to ``draft_max`` tokens (by default 7, at most 15) are guessed at a time, by what was said before or by
        the model at ``draft_model_path``, and checked in one call; no choice depends on it. 0 guesses none.

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

    def set_answer(self, text: str) -> None:
        """Put a text in place of the newest answer, as if the model had written it; the next turn goes on from there.

        So a conversation that was had elsewhere is read: ``chat`` with each question, whose answer nobody takes, and
        ``set_answer`` with the answer it got. Raises ``PromptError`` if there is no answer, or no room for the text.
        """
        if not isinstance(text, str):
            raise PromptError(f"the answer is {type(text).__name__}, and must be text")
        with self._conversation.alone() as conversation:
            self._newest = conversation.set_answer(text)

    def save(self, path: str | os.PathLike[str] | None = None) -> bytearray | None:
        """Keep the conversation: what the model has read of it need not be read again.

        It goes into a file, which is replaced once the new one is whole, or is returned if no path is given. An answer
        is part of it as far as it has come. Only the C++ engine can. Raises ``StateError``.
        """
        with self._conversation.alone() as conversation:
            return conversation.save(path)

    def restore(self, saved: str | os.PathLike[str] | bytes | bytearray) -> None:
        """Go on with a conversation that a session of the same program has saved, in any process.

        Raises ``StateError`` for what is damaged or of another program; then the conversation stays as it was.
        """
        with self._conversation.alone() as conversation:
            conversation.restore(saved)
            self._newest = None

    def _answer(
        self, image: Images | None, text: str, *, is_question: bool, **options: Unpack[AnswerOptions]
    ) -> Iterator[str]:
        """Read a question as the next turn, or a prompt from the beginning. Return the answer."""
        checked = CheckedOptions.of(self.card, **options)  # type: ignore[arg-type]
        images = listed_images(image)
        with self._conversation.alone() as conversation:
            cancels = self._cancels
            try:
                answer = self._newest = conversation.begin(images, text, is_question=is_question, options=checked)
            except UserError:
                raise  # and the answer before goes on
            except BaseException:
                self._newest = None
                raise
        return self._pieces(answer, cancels=cancels)

    def _pieces(self, answer: AnswerSoFar, *, cancels: int) -> Iterator[str]:
        """Yield the text of an answer. After each token the session is ready for another turn.

        Raises ``RuntimeError`` if the answer has been replaced by another.
        """
        while answer.stop_reason is None:
            with self._conversation.alone() as conversation:
                if answer is not self._newest:
                    raise RuntimeError(
                        "this answer was given up: another one was begun or set, or the session was reset or restored"
                    )
                text = conversation.next() if self._cancels == cancels else conversation.end("cancelled")
            if text:
                yield text
