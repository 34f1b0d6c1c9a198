"""The language model's GGUF file, which has llama.cpp's architecture ``llama``: names, types and metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gguf import GGUFWriter, TokenType

from llava_export.checkpoint.weights import CheckpointTensor
from llava_export.config import LlavaConfig
from llava_export.gguf.tensors import GgufTensor, gguf_name
from llava_export.gguf.types import text_type
from llava_export.models import names
from llava_runner.contract import PromptTemplate

DECODER = rf"^{re.escape(names.TEXT_DECODER)}\."
# Read each pair as (pattern of a CheckpointTensor's fqn, start of its name in GGUF): the pattern is replaced, and what
# follows, "weight" or "bias", stays.
TEXT_NAMES = (
    (rf"^{re.escape(names.TOKEN_EMBEDDING)}\.", "token_embd."),
    (rf"^{re.escape(names.DECODER_NORM)}\.", "output_norm."),
    (rf"^{re.escape(names.LM_HEAD)}\.", "output."),
    *(
        (DECODER + rf"layers\.(\d+)\.{ours}\.", rf"blk.\1.{theirs}.")
        for ours, theirs in (
            ("input_layernorm", "attn_norm"),
            (r"self_attn\.q_proj", "attn_q"),
            (r"self_attn\.k_proj", "attn_k"),
            (r"self_attn\.v_proj", "attn_v"),
            (r"self_attn\.o_proj", "attn_output"),
            ("post_attention_layernorm", "ffn_norm"),
            (r"mlp\.gate_proj", "ffn_gate"),
            (r"mlp\.up_proj", "ffn_up"),
            (r"mlp\.down_proj", "ffn_down"),
        )
    ),
)


def text_tensors(sources: Sequence[CheckpointTensor], *, config: LlavaConfig, quantization: str) -> list[GgufTensor]:
    """Return the tensors of the language model's file. ``sources`` are the checkpoint's tensors of the whole model."""
    text = config.text
    heads = {"attn_q": text.num_attention_heads, "attn_k": text.num_key_value_heads}
    tensors = []
    for source in sources:
        if not names.is_in(source.fqn, names.VISION_ENCODER):
            name = gguf_name(source.fqn, TEXT_NAMES)
            part = name.split(".")[2] if name.startswith("blk.") else name
            tensors.append(
                GgufTensor(
                    name=name,
                    source=source,
                    kind=text_type(name, source.shape, quantization=quantization, num_layers=text.num_hidden_layers),
                    num_rotary_heads=heads.get(part, 0),
                )
            )
    return tensors


def write_text_metadata(
    writer: GGUFWriter, *, config: LlavaConfig, prompt: PromptTemplate, tokenizer_model: bytes
) -> None:
    """Add the keys that llama.cpp needs to run the model. ``tokenizer_model`` is a SentencePiece model, serialized."""
    text = config.text
    writer.add_vocab_size(text.vocab_size)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_dimension_count(text.head_dim)
    writer.add_rope_freq_base(text.rope_theta)
    _write_tokenizer(writer, tokenizer_model, config=config)
    writer.add_chat_template(chat_template(prompt))


def chat_template(prompt: PromptTemplate) -> str:
    """Return the Jinja template of the prompts that the model was trained with.

    A system message replaces the one that the model was trained with.
    """
    assistant = prompt.assistant.lstrip()
    before_assistant = prompt.assistant[: len(prompt.assistant) - len(assistant)]
    return (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}"
        f"{{% else %}}{{{{ {prompt.system!r} }}}}{{% endif %}}"
        "{% for message in messages %}"
        f"{{% if message['role'] == 'user' %}}{{{{ {prompt.user!r} + message['content'] + {before_assistant!r} }}}}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ {(assistant + ' ')!r} + message['content'] + eos_token }}}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {assistant!r} }}}}{{% endif %}}"
    )


def _write_tokenizer(writer: GGUFWriter, tokenizer_model: bytes, *, config: LlavaConfig) -> None:
    """Add the tokenizer's pieces. A vocabulary may be padded: ids beyond the pieces are marked as unused."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    proto = ModelProto.FromString(tokenizer_model)
    kinds = {
        ModelProto.SentencePiece.NORMAL: TokenType.NORMAL,
        ModelProto.SentencePiece.UNKNOWN: TokenType.UNKNOWN,
        ModelProto.SentencePiece.CONTROL: TokenType.CONTROL,
        ModelProto.SentencePiece.USER_DEFINED: TokenType.USER_DEFINED,
        ModelProto.SentencePiece.UNUSED: TokenType.UNUSED,
        ModelProto.SentencePiece.BYTE: TokenType.BYTE,
    }
    tokens = [(piece.piece, piece.score, kinds[piece.type]) for piece in proto.pieces]
    tokens += [(f"[PAD{i}]", -1000.0, TokenType.UNUSED) for i in range(len(tokens), config.text.vocab_size)]
    texts, scores, types = zip(*tokens, strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(config.bos_id)
    writer.add_eos_token_id(config.eos_ids[0])
    writer.add_unk_token_id(next(i for i, kind in enumerate(types) if kind is TokenType.UNKNOWN))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
