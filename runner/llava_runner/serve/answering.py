"""The computing of one answer, in the worker's thread, and what it tells meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llava_runner.answer import Answer
from llava_runner.answer_options import AnswerOptions, LogitsProcessor
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import ModelCard
from llava_runner.logprobs import TokenLogprobs
from llava_runner.serve.conversations import Conversations, Reading
from llava_runner.serve.schema import ChatRequest, most_tokens, seed_of
from llava_runner.serve.turns import Dialogue
from llava_runner.serve.worker import Ending, Job
from llava_runner.session import Session


@dataclass(frozen=True)
class Begun:
    """The prompt is read, and the first token comes."""

    reading: Reading


@dataclass(frozen=True)
class Piece:
    """Text of the answer, and its tokens if their probabilities were asked for."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The answer has ended. ``ending`` says why, if that was before its time."""

    answer: Answer
    ending: Ending | None


@dataclass(frozen=True)
class Answerer:
    """A session with its conversations, and the tokenizer that constrained answers need. One thread uses it."""

    session: Session
    conversations: Conversations
    tokenizer: ChatTokenizer

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self.session.card

    def job(
        self, request: ChatRequest, dialogue: Dialogue, *, processor: LogitsProcessor | None
    ) -> Callable[[Job], None]:
        """Return what computes the answer to a request. It tells ``Begun``, pieces, and ``Finished``."""
        options = options_of(request, logits_processor=processor)
        return lambda job: self._answer(job, request, dialogue, options)

    def _answer(self, job: Job, request: ChatRequest, dialogue: Dialogue, options: AnswerOptions) -> None:
        pieces, reading = self.conversations.begin(dialogue, before_turn=job.check, **options)
        try:
            if job.ending is not None:  # it came before the session knew of this answer
                self.session.cancel()
            job.tell(Begun(reading))
            told = 0
            for text in pieces:
                found = self.session.last.logprobs or () if request.logprobs else ()
                job.tell(Piece(text, found[told:]))
                told = len(found)
            answer = self.session.last
            if answer.logprobs and answer.logprobs[told:]:
                job.tell(Piece("", answer.logprobs[told:]))
        except BaseException:
            self.conversations.forget()
            raise
        self.conversations.finish()
        job.tell(Finished(answer, job.ending))

    def processor(self, request: ChatRequest) -> LogitsProcessor | None:
        """Return what keeps an answer to JSON, if that is asked for. It is for one answer; any thread may call this.

        Raises ``PromptError`` for a schema that cannot be followed.
        """
        wanted = request.response_format
        if wanted is None or wanted.type == "text":
            return None
        from llava_runner.serve.grammar import json_processor

        schema = wanted.json_schema.schema_ if wanted.type == "json_schema" and wanted.json_schema else None
        return json_processor(self.tokenizer, eos_ids=self.card.eos_ids, vocab_size=self.card.vocab_size, schema=schema)


def options_of(request: ChatRequest, *, logits_processor: LogitsProcessor | None) -> AnswerOptions:
    """Return the options of an answer as a session takes them."""
    return AnswerOptions(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        stop=request.stop,
        max_new_tokens=most_tokens(request),
        seed=seed_of(request),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        logits_processor=logits_processor,
    )
