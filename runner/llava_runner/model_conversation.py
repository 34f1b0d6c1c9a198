"""What a model has read of a conversation, and how it reads on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import ModelCard
from llava_runner.model import Model
from llava_runner.prompt import prompt_chunks, question_chunks
from llava_runner.timings import Timings


class History:
    """The conversation in the KV cache of a model, and the newest token, which is not in it yet."""

    position: int  # rows in the KV cache
    ids: list[int]  # the tokens of these rows. An image has none
    uncached: list[int]  # the newest token of an answer: sampled, but not yet in the KV cache
    _last_id: int  # the newest token of the conversation that does not end an answer

    def __init__(self, card: ModelCard, tokenizer: ChatTokenizer) -> None:
        self._card = card
        self._tokenizer = tokenizer
        self.forget()

    def forget(self) -> None:
        """Begin with an empty conversation."""
        self.position = 0
        self.ids = []
        self.uncached = []
        self._last_id = -1

    def add(self, token_id: int) -> None:
        """Add the newest token of an answer, which the model has not read yet."""
        self.uncached = [token_id]
        if token_id not in self._card.eos_ids:
            self._last_id = token_id

    def tokenize(self, prompt: str, *, is_question: bool, num_images: int) -> list[list[int]]:
        """Return the token ids before, between and after the images of a turn.

        A question is the next turn, anything else the first one. Raises ``PromptError``.
        """
        template = self._card.prompt
        first_turn = not is_question or self.position == 0
        if is_question:
            chunks = question_chunks(prompt, template=template, num_images=num_images, first_turn=first_turn)
        else:
            chunks = prompt_chunks(prompt, template=template, num_images=num_images)
        if first_turn:
            return self._tokenizer.encode_turn(chunks)
        # The template spells the end of the answer, whether the model has come to it or was cut short.
        unread = [token_id for token_id in self.uncached if token_id not in self._card.eos_ids]
        ids = self._tokenizer.encode_turn(chunks, before=self._last_id)
        return [[*unread, *ids[0]], *ids[1:]]

    def read(
        self, model: Model, chunks: Sequence[list[int]], images: Sequence[np.ndarray], *, timings: Timings
    ) -> np.ndarray:
        """Let the model read a turn: images, and the tokens around them.

        Returns the logits ``float32 [vocab_size]`` of the answer's first token. If reading is interrupted, the turn has
        not happened.
        """
        features = []
        for pixels in images:
            with timings.image.measure(self._card.num_image_tokens):
                features.append(model.encode_image(pixels))
        with timings.prompt.measure(0) as prompt:
            rows = []
            for i, chunk in enumerate(chunks):
                rows += [model.embed(chunk)] if chunk else []
                rows += features[i : i + 1]
            inputs_embeds = torch.cat(rows, dim=1)
            prompt.count = inputs_embeds.shape[1]
            logits = model.decode(inputs_embeds, position=self.position)
        self.position += prompt.count
        self.ids += [token_id for chunk in chunks for token_id in chunk]
        self.uncached, self._last_id = [], (chunks[-1] or [-1])[-1]
        return logits.numpy()

    def read_newest(self, model: Model, *, timings: Timings) -> np.ndarray:
        """Let the model read the newest token. Return the logits ``float32 [vocab_size]`` of the next one."""
        with timings.eval.measure():
            logits = model.decode(model.embed(self.uncached), position=self.position)
        self.ids += self.uncached
        self.position, self.uncached = self.position + 1, []
        return logits.numpy()
