"""The card of a small model, with a value for every field."""

from __future__ import annotations

from llava_runner.contract import AddedToken, GenerationDefaults, ModelCard, PromptTemplate, TokenizerRules

CARD = ModelCard(
    family="llava-1.5", source="a", image_size=28, num_image_tokens=4, image_mean=(0.5, 0.4, 0.3),
    image_std=(0.2, 0.2, 0.2), image_aspect_ratio="pad", image_resize=32, image_resample="box",
    prompt=PromptTemplate("s", "u", "a", "\n"), prompt_source="a test", tokenizer=TokenizerRules(
        prepend_scheme="first", image_begins_text=False, adds_bos=True,
        added_tokens=(AddedToken(17, "[SEG]", special=False, lstrip=True, rstrip=False, normalized=True),),
    ), generation=GenerationDefaults(
        temperature=0.5, top_p=0.5, max_new_tokens=5, top_k=40, min_p=0.1, repetition_penalty=1.1
    ), hidden_size=8, vocab_size=20, tokenizer_vocab_size=18, bos_id=1, eos_ids=(2,), max_seq_len=64,
    max_context_len=64,
    recipe={
        "name": "8da4w", "text": "8da4w", "vision": "8da8w", "embedding_bits": 8, "kv_cache": "bf16", "head": "8da8w",
        "group_size": 128, "algorithm": "mse",
    },
    executorch_version="1.5.1",
)  # fmt: skip
