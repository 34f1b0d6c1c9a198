"""The prompts that have a name: what stands around questions, images and answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llava_runner.contract import PromptTemplate


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt template, and what only the export needs to know about it.

    ``before_answer`` is what the model itself writes between the assistant's cue and an answer, which can be only
    spaces. ``around_system`` is what stands before and after a system message that replaces ``template.system``; None
    if there can be none. With ``is_dated``, the template has the date of the export in it.
    """

    template: PromptTemplate
    before_answer: str = ""
    around_system: tuple[str, str] | None = None
    is_dated: bool = False


VICUNA_V1 = ChatPrompt(
    PromptTemplate(
        system=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        ),
        user="USER: ",
        assistant=" ASSISTANT:",
    ),
    before_answer=" ",
    around_system=("", " "),
)
LLAVA_HF = ChatPrompt(
    PromptTemplate(system="", user="USER: ", assistant=" ASSISTANT:", answer_end=" "), before_answer=" "
)
MISTRAL = ChatPrompt(PromptTemplate(system="", user="[INST] ", assistant=" [/INST]"), before_answer=" ")
PHI3 = ChatPrompt(
    PromptTemplate(system="", user="<|user|>\n", assistant="<|end|>\n<|assistant|>\n", answer_end="<|end|>\n"),
    around_system=("<|system|>\n", "<|end|>\n"),
)
LLAMA3 = ChatPrompt(
    PromptTemplate(
        system="",
        user="<|start_header_id|>user<|end_header_id|>\n\n",
        assistant="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        answer_end="<|eot_id|>",
    ),
    around_system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
)
CHATML_SYSTEM = ("<|im_start|>system\n", "<|im_end|>\n")
CHATML = ChatPrompt(
    PromptTemplate(
        system="",
        user="<|im_start|>user\n",
        assistant="<|im_end|>\n<|im_start|>assistant\n",
        answer_end="<|im_end|>\n",
    ),
    around_system=CHATML_SYSTEM,
)
QWEN = replace(CHATML, template=replace(CHATML.template, system="You are a helpful assistant.".join(CHATML_SYSTEM)))
NO_PROMPT = ChatPrompt(PromptTemplate(system="", user="", assistant="", image_separator="", answer_end=""))

# By the names that --prompt-template takes.
PROMPTS = {
    "vicuna_v1": VICUNA_V1,
    "llava_hf": LLAVA_HF,
    "phi3": PHI3,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "qwen": QWEN,
    "chatml": CHATML,
}
