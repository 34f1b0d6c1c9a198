"""A conversation that is computed in Python, with a model: an exported program, or the float model."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from llava_runner.answer import AnswerSoFar, StopReason
from llava_runner.answer_options import CheckedOptions
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.checks import check_room
from llava_runner.draft import look_up
from llava_runner.draft_model import DraftModel
from llava_runner.engine_library import EngineName
from llava_runner.errors import PromptError, StateError
from llava_runner.growing_answer import GrowingAnswer
from llava_runner.image import prepare_image_for
from llava_runner.image.kinds import ImageSource
from llava_runner.model import ModelWithCard
from llava_runner.prompt import prompt_chunks, question_chunks
from llava_runner.speculative_decoding import SpeculativeDecoding
from llava_runner.stop_strings import StopStrings
from llava_runner.timings import Stage, Timings
from llava_runner.tokenizer import TextStream
from llava_runner.tokenizer_file import AnyTokenizer


class ModelConversation:
    """A ``Conversation`` in the KV cache of a model, which no other conversation may use."""

    engine: EngineName = "python"
    _answer: GrowingAnswer
    _options: CheckedOptions
    _decoding: SpeculativeDecoding  # of the newest answer
    _logits: np.ndarray | None  # of the answer's next token. None: the newest one must be read first
    _ids: list[int]  # the tokens in the KV cache. An image has none
    _prompt_end: tuple[int, int, int] | None  # positions, ids and the last id before the newest answer, if there is one

    def __init__(
        self,
        model: ModelWithCard,
        *,
        tokenizer: AnyTokenizer,
        load: Stage | None = None,
        draft: DraftModel | None = None,
    ) -> None:
        """Begin with an empty conversation. ``load`` is the time that loading took, for ``timings``.

        Without a ``draft``, tokens are guessed by prompt lookup. Raises ``PackageError`` if the tokenizer is that of
        another model.
        """
        self.card = model.card
        self._tokenizer = ChatTokenizer.of(self.card, tokenizer)
        self._model = model
        self._draft = draft
        self.load = load or Stage()
        self.forget()

    def forget(self) -> None:
        """Begin with an empty conversation."""
        self._cached = 0  # rows in the KV cache
        self._ids = []
        self._unread: list[int] = []  # tokens of the newest answer that are not in the KV cache yet
        self._last_id = -1  # the newest token of the conversation that does not end an answer
        self._prompt_end = None

    @property
    def position(self) -> int:
        """The number of positions that the conversation takes."""
        return self._cached + len(self._unread)

    def begin(
        self, images: Sequence[ImageSource], text: str, *, is_question: bool, options: CheckedOptions
    ) -> AnswerSoFar:
        """Read a turn as ``Conversation.begin`` says. If reading is interrupted, the turn has not happened."""
        card, limit = self.card, options.seq_len
        timings = Timings(load=self.load)
        unread = self._unread_text() if is_question else []
        start = self._cached + len(unread) if is_question else 0
        with timings.prompt.measure(0):
            chunks = self._tokenize(text, is_question=is_question, num_images=len(images))
        num_image_tokens = len(images) * card.num_image_tokens
        end = start + sum(len(chunk) for chunk in chunks) + num_image_tokens
        check_room(
            "the prompt", then="the answer", start=start, end=end, limit=limit, num_image_tokens=num_image_tokens
        )
        chunks[0] = [*unread, *chunks[0]]
        with timings.image.measure(0):
            aspect_ratio = options.image_aspect_ratio
            pixels = [prepare_image_for(card, image, image_aspect_ratio=aspect_ratio) for image in images]

        # From here on, no mistake of the caller can stop this turn.
        if start == 0:
            self.forget()
        budget = limit - end
        reason: StopReason = "context" if limit == card.max_context_len else "length"
        if options.max_new_tokens <= budget:
            budget, reason = options.max_new_tokens, "length"
        self._answer = GrowingAnswer(
            TextStream(self._tokenizer),
            StopStrings(options.stops),
            timings=timings,
            eos_ids=card.eos_ids,
            budget=budget,
            reason=reason,
            logprobs=options.logprobs,
        )
        self._options = options
        self._decoding = SpeculativeDecoding(options.draft_max)
        self._logits = self._read(chunks, pixels, timings=timings)
        self._prompt_end = self._cached, len(self._ids), self._last_id
        return self._answer

    def next(self) -> str:
        """Add the next token to the newest answer, and return the text that can be shown by now."""
        answer, options = self._answer, self._options
        logits = self._read_newest() if self._logits is None else self._logits
        if options.logits_processor is not None:
            options.logits_processor(answer.ids, logits)
            if not np.isfinite(logits).any():
                raise RuntimeError("all tokens are ruled out")
        with answer.timings.sample.measure():
            token_id = options.sampler.sample(logits, self._ids)
        self._logits, self._unread = None, [token_id]
        if token_id not in self.card.eos_ids:
            self._last_id = token_id
        return answer.add(token_id, logits)

    def end(self, reason: StopReason) -> str:
        """End the newest answer. Return what was left of its text."""
        return self._answer.end(reason)

    def set_answer(self, text: str) -> AnswerSoFar:
        """Put a text in place of the newest answer, as ``Conversation.set_answer`` says."""
        if self._prompt_end is None:
            raise PromptError("there is no answer that the text could stand for; ask first")
        ids = self._tokenizer.encode_answer(text)
        start, num_ids, last_id = self._prompt_end
        limit = self.card.max_context_len
        check_room("the given answer", then="the next turn", start=start, end=start + len(ids), limit=limit)
        self._cached, self._unread, self._last_id = start, ids, [last_id, *ids][-1]
        del self._ids[num_ids:]
        return AnswerSoFar.whole(ids, text, timings=self._answer.timings)

    def save(self, path: str | os.PathLike[str] | None = None) -> bytearray | None:
        """Raise ``StateError``: ExecuTorch's Python runtime does not show a program's KV cache."""
        raise StateError('a conversation is kept by the C++ engine alone: load the session with engine="cpp"')

    def restore(self, saved: str | os.PathLike[str] | bytes | bytearray) -> None:
        """Raise ``StateError``, as ``save`` does."""
        self.save()

    def close(self) -> None:
        """Let go of the models."""
        del self._model, self._draft

    def _tokenize(self, text: str, *, is_question: bool, num_images: int) -> list[list[int]]:
        """Return the token ids before, between and after the images of a turn. Raises ``PromptError``."""
        template = self.card.prompt
        first_turn = not is_question or self._cached == 0
        if is_question:
            chunks = question_chunks(text, template=template, num_images=num_images, first_turn=first_turn)
        else:
            chunks = prompt_chunks(text, template=template, num_images=num_images)
        if first_turn:
            return self._tokenizer.encode_turn(chunks)
        return self._tokenizer.encode_turn(chunks, before=self._last_id)

    def _unread_text(self) -> list[int]:
        """Return the tokens of the newest answer that the model has not read yet, without its end.

        The template spells that, whether the model has come to it or was cut short.
        """
        return [token_id for token_id in self._unread if token_id not in self.card.eos_ids]

    def _read(self, chunks: Sequence[list[int]], images: Sequence[np.ndarray], *, timings: Timings) -> np.ndarray:
        """Let the model read a turn: images, and the tokens around them.

        Returns the logits ``float32 [vocab_size]`` of the answer's first token.
        """
        features = []
        for pixels in images:
            with timings.image.measure(self.card.num_image_tokens):
                features.append(self._model.encode_image(pixels))
        with timings.prompt.measure(0) as prompt:
            rows = []
            for i, chunk in enumerate(chunks):
                rows += [self._model.embed(chunk)] if chunk else []
                rows += features[i : i + 1]
            inputs_embeds = torch.cat(rows, dim=1)
            prompt.count = inputs_embeds.shape[1]
            logits = self._model.decode(inputs_embeds, position=self._cached)
        self._cached += prompt.count
        self._ids += [token_id for chunk in chunks for token_id in chunk]
        self._unread, self._last_id = [], (chunks[-1] or [-1])[-1]
        return logits.numpy()

    def _read_newest(self) -> np.ndarray:
        """Return the logits ``float32 [vocab_size]`` after the newest token, which the model reads if it has not."""
        timings, decoding = self._answer.timings, self._decoding
        (token_id,) = self._unread
        with timings.eval.measure():
            logits = decoding.logits_after(
                self._model, token_id, position=self._cached, room=self._answer.room - 1, guess=self._guess
            )
        timings.drafted, timings.accepted = decoding.drafted, decoding.accepted
        self._ids.append(token_id)
        self._cached, self._unread = self._cached + 1, []  # guesses behind it are overwritten if they do not come
        return logits

    def _guess(self, most: int) -> list[int]:
        """Return at most ``most`` tokens that may follow the newest one."""
        ids = [*self._ids, *self._unread]
        ids = self._draft.guess(ids, most) if self._draft else look_up(ids, most)
        end = next((i + 1 for i, token_id in enumerate(ids) if token_id in self.card.eos_ids), len(ids))
        return ids[:end]  # what followed that answer will not follow this one
