"""The language model's GGUF file: llama.cpp's architecture, names, types and metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType

from llava_export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from llava_export.checkpoint.weights import CheckpointTensor
from llava_export.config import LinearScaling, Llama3Scaling, LlavaConfig
from llava_export.errors import ExportError
from llava_export.families.language_models import LANGUAGE_MODELS
from llava_export.families.prompts import ChatPrompt
from llava_export.gguf.tensors import Fused, GgufTensor, gguf_name
from llava_export.gguf.types import text_type
from llava_export.gguf.vocabulary import begins_with, write_vocabulary
from llava_export.models import names
from llava_export.models.rotary import frequency_divisors

PROMPT_SOURCE = "llava_export.prompt_source"
ROPE_DIVISORS = "rope_freqs.weight"  # the one tensor that is computed: scaling of the kind llama3
IMAGE_MARKER = "<__media__>"  # what llama.cpp puts into a message in place of an image
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


# The same of linears that are one in the file.
FUSED_NAMES = (
    (DECODER + r"layers\.(\d+)\.self_attn\.[qkv]_proj\.", r"blk.\1.attn_qkv."),
    (DECODER + r"layers\.(\d+)\.mlp\.(?:gate|up)_proj\.", r"blk.\1.ffn_up."),
)


def check_text(config: LlavaConfig) -> None:
    """Raise ``ExportError`` for a language model that llama.cpp cannot compute."""
    text, language_model = config.text, LANGUAGE_MODELS[config.text.model_type]
    width = text.num_attention_heads * text.head_dim
    if language_model.gguf_needs_square_attention and width != text.hidden_size:
        raise ExportError(
            f"llama.cpp reads a {language_model.name} only if its heads together are as wide as the model, "
            f"{text.hidden_size}; {text.num_attention_heads} heads of {text.head_dim} are {width} wide"
        )
    if isinstance(text.rope_scaling, Llama3Scaling) and not language_model.gguf_rotates_neighbors:
        raise ExportError(f"llama.cpp has no rotary embedding of type llama3 for a {language_model.name}")


def text_tensors(sources: Sequence[CheckpointTensor], *, config: LlavaConfig, quantization: str) -> list[GgufTensor]:
    """Return the tensors of the language model's file. ``sources`` are the checkpoint's tensors of the whole model."""
    text, language_model = config.text, LANGUAGE_MODELS[config.text.model_type]
    gguf_names = (*(FUSED_NAMES if language_model.is_fused else ()), *TEXT_NAMES)
    parts: dict[str, list[CheckpointTensor]] = {}
    for source in sources:
        if not names.is_in(source.fqn, names.VISION_ENCODER):
            parts.setdefault(gguf_name(source.fqn, gguf_names), []).append(source)
    heads = {"attn_q": text.num_attention_heads, "attn_k": text.num_key_value_heads}
    tensors = []
    for name, made_of in parts.items():
        whole = made_of[0] if len(made_of) == 1 else Fused(tuple(made_of))
        kind = text_type(
            name,
            whole.shape,
            quantization=quantization,
            num_layers=text.num_hidden_layers,
            tied=text.tie_word_embeddings,
        )
        part = name.split(".")[2] if name.startswith("blk.") else name
        rotary_heads = heads.get(part, 0) if language_model.gguf_rotates_neighbors else 0
        tensors.append(GgufTensor(name=name, source=whole, kind=kind, num_rotary_heads=rotary_heads))
    if isinstance(text.rope_scaling, Llama3Scaling):
        tensors.append(GgufTensor(name=ROPE_DIVISORS, source=frequency_divisors(text), kind=GGMLQuantizationType.F32))
    return tensors


def write_text_metadata(
    writer: GGUFWriter,
    *,
    config: LlavaConfig,
    prompt: ChatPrompt,
    prompt_source: str,
    tokenizer: CheckpointTokenizer,
    eos_ids: Sequence[int],
) -> None:
    """Add the keys that llama.cpp needs to run the model. Any of ``eos_ids`` ends an answer.

    ``prompt_source`` says where the prompt is from, for ``llava verify``.
    """
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
    if isinstance(text.rope_scaling, LinearScaling):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(text.rope_scaling.factor)
    if LANGUAGE_MODELS[text.model_type].gguf_has_window:
        writer.add_rope_scaling_orig_ctx_len(text.max_position_embeddings)
        writer.add_sliding_window(text.sliding_window or 0)
    write_vocabulary(writer, tokenizer, config=config, eos_ids=eos_ids)
    bos, adds_bos = begins_with(tokenizer, bos_id=config.bos_id, system=prompt.template.system)
    writer.add_add_bos_token(adds_bos)
    writer.add_string(PROMPT_SOURCE, prompt_source)
    writer.add_chat_template(chat_template(prompt, bos=bos))


def chat_template(prompt: ChatPrompt, *, bos: str) -> str:
    """Return the Jinja template of the prompts that the model was trained with.

    A system message replaces the one that the model was trained with, or comes before the first question where the
    prompt has no place for one. ``bos`` is left out at the beginning: llama.cpp puts it there. What stands around an
    image is put around llama.cpp's marker of one.
    """
    it = prompt.template
    before, after = prompt.around_system or ("", "\n" + it.system.removeprefix(bos))
    system, content = "messages[0]['content']", "message['content']" + (" | trim" if it.trims else "")
    if it.image_start or it.image_end:
        content += f" | replace({IMAGE_MARKER!r}, {it.image_start + IMAGE_MARKER + it.image_end!r})"
    return (
        f"{{% if messages[0]['role'] == 'system' %}}{{{{ {before.removeprefix(bos)!r} + {system} + {after!r} }}}}"
        f"{{% else %}}{{{{ {it.system.removeprefix(bos)!r} }}}}{{% endif %}}"
        "{% for message in messages %}"
        f"{{% if message['role'] == 'user' %}}{{{{ {it.user!r} + ({content}) }}}}"
        f"{{% elif message['role'] == 'assistant' %}}"
        f"{{{{ {(it.assistant + prompt.before_answer)!r} + message['content'] + {it.answer_end!r} }}}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {it.assistant!r} }}}}{{% endif %}}"
    )
