"""The language model's GGUF file, which has llama.cpp's architecture ``llama``: names, types and metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType

from llava_export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from llava_export.checkpoint.weights import CheckpointTensor
from llava_export.config import LinearScaling, Llama3Scaling, LlavaConfig
from llava_export.families.prompts import ChatPrompt
from llava_export.gguf.tensors import GgufTensor, gguf_name
from llava_export.gguf.types import text_type
from llava_export.gguf.vocabulary import begins_with, write_vocabulary
from llava_export.models import names
from llava_export.models.rotary import frequency_divisors

PROMPT_SOURCE = "llava_export.prompt_source"
ROPE_DIVISORS = "rope_freqs.weight"  # the one tensor that is computed: scaling of the kind llama3
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
                    kind=text_type(
                        name,
                        source.shape,
                        quantization=quantization,
                        num_layers=text.num_hidden_layers,
                        tied=text.tie_word_embeddings,
                    ),
                    num_rotary_heads=heads.get(part, 0),
                )
            )
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
    write_vocabulary(writer, tokenizer, config=config, eos_ids=eos_ids)
    bos, adds_bos = begins_with(tokenizer, bos_id=config.bos_id, system=prompt.template.system)
    writer.add_add_bos_token(adds_bos)
    writer.add_string(PROMPT_SOURCE, prompt_source)
    writer.add_chat_template(chat_template(prompt, bos=bos))


def chat_template(prompt: ChatPrompt, *, bos: str) -> str:
    """Return the Jinja template of the prompts that the model was trained with.

    A system message replaces the one that the model was trained with, or comes before the first question where the
    prompt has no place for one. ``bos`` is left out at the beginning: llama.cpp puts it there.
    """
    it = prompt.template
    before, after = prompt.around_system or ("", "\n" + it.system.removeprefix(bos))
    system, content = "messages[0]['content']", "message['content']" + (" | trim" if it.trims else "")
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
