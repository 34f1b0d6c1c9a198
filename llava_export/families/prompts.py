"""The prompts that have a name: what stands around questions, images and answers."""

from __future__ import annotations

from llava_runner.contract import PromptTemplate

VICUNA_V1 = PromptTemplate(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    ),
    user="USER: ",
    assistant=" ASSISTANT:",
    image_suffix="\n",
)
MISTRAL = PromptTemplate(system="", user="[INST] ", assistant=" [/INST]", image_suffix="\n")

# By the names that --prompt-template takes.
PROMPTS = {"vicuna_v1": VICUNA_V1, "mistral": MISTRAL}
