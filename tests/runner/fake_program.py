"""A model without a runtime: it has the calls of a program, and its whole context is one tensor.

``tests/runner/tiny_program.py`` makes a real program that computes the same.
"""

from __future__ import annotations

import numpy as np
import torch

from llava_runner.contract import AddedToken, GenerationDefaults, ModelCard, PromptTemplate, TokenizerRules

TEMPLATE = PromptTemplate(system="Be kind. ", user="USER: ", assistant=" ASSISTANT:", image_separator="\n")


GREEDY = GenerationDefaults(temperature=0.0, top_p=1.0, max_new_tokens=0)


def added_token(token_id: int, content: str, **settings: bool) -> AddedToken:
    flags = dict.fromkeys(("special", "lstrip", "rstrip", "normalized"), False) | settings
    return AddedToken(id=token_id, content=content, **flags)


# As SentencePiece encodes each text on its own.
PLAIN_RULES = TokenizerRules(
    prepend_scheme="prepend",
    image_begins_text=True,
    adds_bos=True,
    added_tokens=(added_token(1, "<s>", special=True), added_token(2, "</s>", special=True)),
)


def make_card(
    *,
    vocab_size: int,
    max_seq_len: int = 128,
    max_context_len: int = 128,
    logits_to_keep: int = 1,
    eos_ids: tuple[int, ...] = (2,),
    prompt: PromptTemplate = TEMPLATE,
    rules: TokenizerRules = PLAIN_RULES,
    tokenizer_vocab_size: int | None = None,
    generation: GenerationDefaults = GREEDY,
) -> ModelCard:
    return ModelCard(
        family="llava15",
        source="fake",
        image_size=28,
        num_image_tokens=4,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
        image_aspect_ratio="pad",
        image_resize=28,
        image_resample="bicubic",
        prompt=prompt,
        prompt_source="a test",
        tokenizer=rules,
        generation=generation,
        hidden_size=8,
        vocab_size=vocab_size,
        tokenizer_vocab_size=tokenizer_vocab_size or vocab_size,
        bos_id=1,
        eos_ids=eos_ids,
        max_seq_len=max_seq_len,
        max_context_len=max_context_len,
        logits_to_keep=logits_to_keep,
        recipe={"name": "fp32"},
        executorch_version="1.5.1",
    )


class FakeProgram:
    """A model whose logits depend on each row of the context and its position, so that one misplaced row changes them.

    It never chooses token 2, so no answer ends by itself. With ``repeats``, the newest row counts most: then answers
    soon say again what they said before.
    """

    def __init__(self, card: ModelCard, *, repeats: bool = False) -> None:
        self.card = card
        self.newest, self.others = (3.0, 0.02) if repeats else (0.0, 1.0)
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(card.vocab_size, card.hidden_size, generator=generator)
        self.head = torch.randn(card.hidden_size, card.vocab_size, generator=generator)
        self.projector = torch.randn(3, card.num_image_tokens * card.hidden_size, generator=generator)
        self.rows = torch.full((card.max_context_len, card.hidden_size), torch.nan)
        self.calls = 0
        self.interrupt_next = False

    def encode_image(self, pixels: np.ndarray) -> torch.Tensor:
        self.calls += 1
        colors = torch.from_numpy(pixels).float().mean((1, 2)) / 255
        return (colors @ self.projector).view(1, self.card.num_image_tokens, self.card.hidden_size)

    def embed(self, input_ids: list[int]) -> torch.Tensor:
        self.calls += 1
        return self.embedding[input_ids].unsqueeze(0)

    def decode(self, inputs_embeds: torch.Tensor, *, position: int) -> torch.Tensor:
        return self._logits(inputs_embeds, position)[-1]

    def verify(self, inputs_embeds: torch.Tensor, *, position: int) -> torch.Tensor:
        assert inputs_embeds.shape[1] <= self.card.logits_to_keep
        return self._logits(inputs_embeds, position)

    def _logits(self, inputs_embeds: torch.Tensor, position: int) -> torch.Tensor:
        self.calls += 1
        end = position + inputs_embeds.shape[1]
        self.rows[position:end] = inputs_embeds[0]
        if self.interrupt_next:
            self.interrupt_next = False
            raise KeyboardInterrupt
        weights = torch.arange(1, end + 1).cos().unsqueeze(1)
        sums = (self.rows[:end] * weights).cumsum(0)[position:]
        logits = (self.others * sums + self.newest * inputs_embeds[0]).tanh() @ self.head
        logits[:, 2] = -torch.inf
        return logits
