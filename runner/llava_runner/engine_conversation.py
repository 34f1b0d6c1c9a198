"""A conversation that the C++ runner computes. No torch is needed, and none is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llava_runner.answer import AnswerSoFar, StopReason
from llava_runner.answer_options import CheckedOptions
from llava_runner.contract import ModelCard
from llava_runner.engine import STOP_REASONS, Engine
from llava_runner.engine_library import EngineName
from llava_runner.image import prepare_image_for
from llava_runner.image.kinds import ImageSource
from llava_runner.logprobs import Logprob, TokenLogprobs
from llava_runner.timings import Stage, Timings


class EngineConversation:
    """A ``Conversation`` in the KV cache of a program, with images prepared in Python.

    What the cache holds already is not read again: a new conversation goes on from where the one before differs.
    """

    engine: EngineName = "cpp"
    _answer: AnswerSoFar
    _options: CheckedOptions

    def __init__(self, engine: Engine, *, load: Stage | None = None) -> None:
        """Take over an open engine. ``load`` is the time that loading took, for ``timings``."""
        self._engine = engine
        self.load = load or Stage()
        self.card = ModelCard.from_json(engine.model_card())
        self.position = engine.describe().position

    def begin(
        self, images: Sequence[ImageSource], text: str, *, is_question: bool, options: CheckedOptions
    ) -> AnswerSoFar:
        """Read a turn, as ``Conversation.begin`` says."""
        timings = Timings(load=self.load)
        with timings.image.measure(0):
            aspect_ratio = options.image_aspect_ratio
            pixels = [prepare_image_for(self.card, image, image_aspect_ratio=aspect_ratio) for image in images]
        sampler = options.sampler
        self._engine.remove_images()
        for each in pixels:
            self._engine.add_tensor(each)
        self._engine.begin(
            text,
            new_conversation=not is_question,
            max_new_tokens=min(options.max_new_tokens, self.card.max_context_len),
            seq_len=options.seq_len,
            has_seed=sampler.seed is not None,
            seed=sampler.seed or 0,
            temperature=sampler.temperature,
            top_p=sampler.top_p,
            top_k=min(sampler.top_k, self.card.vocab_size),
            stops=options.stops,
            min_p=sampler.min_p,
            repetition_penalty=sampler.repetition_penalty,
            logprobs=options.logprobs is not None,
            top_logprobs=options.logprobs or 0,
            draft_max=options.draft_max or -1,
        )
        self._options = options
        self._image_ms = timings.image.ms
        self._prompt_end = self._engine.describe().position
        self._answer = AnswerSoFar(timings=timings, has_logprobs=options.logprobs is not None)
        self._add("")
        return self._answer

    def next(self) -> str:
        """Add the next token to the newest answer, and return the text that can be shown by now."""
        process = self._options.logits_processor
        if process is not None and (logits := self._engine.logits()) is not None:
            process(self._answer.ids, logits)
        return self._add(self._engine.next() or "")

    def end(self, reason: StopReason) -> str:
        """End the newest answer. Return what was left of its text."""
        self._engine.cancel()
        return self._add(self._engine.next() or "")

    def set_answer(self, text: str) -> AnswerSoFar:
        """Put a text in place of the newest answer, as ``Conversation.set_answer`` says."""
        self._engine.set_answer(text)
        self.position = self._engine.describe().position
        return AnswerSoFar.whole(self._engine.last_ids(), text, timings=self._answer.timings)

    def forget(self) -> None:
        """Begin with an empty conversation."""
        self._engine.reset()
        self.position = 0

    def save(self, path: str | os.PathLike[str] | None = None) -> bytearray | None:
        """Keep the conversation in a file, or return it."""
        return self._engine.save(path)

    def restore(self, saved: str | os.PathLike[str] | bytes | bytearray) -> None:
        """Go on with a conversation that ``save`` kept."""
        self._engine.restore(saved)
        self.position = self._engine.describe().position

    def close(self) -> None:
        """Free the program's memory."""
        self._engine.close()

    def _add(self, text: str) -> str:
        """Bring the newest answer to where the engine is, with the text that came last. Return the text."""
        answer, last = self._answer, self._engine.last()
        for i in range(len(answer.ids), last.num_tokens):
            if answer.logprobs is not None:
                (token_id, logprob), *likely = self._engine.last_logprobs(i)
                answer.logprobs.append(TokenLogprobs(token_id, logprob, tuple(Logprob(*each) for each in likely)))
            answer.ids.append(self._engine.last_ids()[i])
        self.position = self._prompt_end + len(answer.ids)
        answer.texts.append(text)
        for name in ("prompt", "sample", "eval"):
            found = getattr(last, name)
            setattr(answer.timings, name, Stage(found.ms, found.count))
        answer.timings.image = Stage(self._image_ms + last.image.ms, last.image.count)
        answer.timings.drafted, answer.timings.accepted = last.num_drafted, last.num_accepted
        answer.stop_reason = STOP_REASONS[last.stop_reason]  # at the end: where there is one, the rest is complete
        return text
