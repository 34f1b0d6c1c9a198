"""Chat templates as published ones work, by name."""

from __future__ import annotations

# As llava-hf publishes it, but for its comments.
LLAVA_HF = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if m['role'] != 'assistant' %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% else %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ c['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
VICUNA = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content[0].text + ' ' }}{% else %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, '"
    " + 'detailed, and polite answers to the user\\'s questions. ' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}USER: {% for c in m.content %}"
    "{{ '<image>\n' if c.type == 'image' else c.text + ' ' }}{% endfor %}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content[0].text + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for c in m['content'] %}{{ '<image>\n' if c['type'] == 'image' else c['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'][0]['text'] + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% for c in m.content %}"
    "{{ '<image>\n' if c.type == 'image' else c.text }}{% endfor %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}{% for c in m.content %}"
    "{{ '<image>\n' if c.type == 'image' else c.text | trim }}{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for c in m.content %}"
    "{{ '<image>\n' if c.type == 'image' else c.text }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Each with the special tokens that it takes.
TEMPLATES = {
    "vicuna": (VICUNA, ()),
    "llava_hf": (LLAVA_HF, ()),
    "inst": (INST, ()),
    "phi3": (PHI3, ("<|user|>", "<|assistant|>", "<|end|>", "<|system|>")),
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>")),
}
