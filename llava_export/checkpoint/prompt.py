"""Which prompt a checkpoint is exported with: the one that is asked for, its own, or its family's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava_export.checkpoint.chat_template import (
    ChatTemplate,
    SpecialTokens,
    Turn,
    conversation,
    find_chat_template,
    prompt_template,
    read_template,
)
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.errors import CheckpointError
from llava_export.families.prompts import PROMPTS
from llava_runner.contract import IMAGE_PLACEHOLDER, PromptTemplate
from llava_runner.documents import JsonObject, read_object
from llava_runner.paths import with_home

# llava-hf's published template, which leaves out the system sentence that its models were trained with.
SHORTENED = (
    (Turn("1", "2", has_image=True), Turn("3", "4"), Turn("5")),
    "USER: <image>\n1 ASSISTANT: 2 USER: 3 ASSISTANT: 4 USER: 5 ASSISTANT:",
)


@dataclass(frozen=True)
class Prompt:
    """The pieces of a prompt, and where they come from."""

    template: PromptTemplate
    source: str

    def example(self) -> str:
        """Return a turn with an image, as the model reads it."""
        it = self.template
        return f"{it.system}{it.user}{IMAGE_PLACEHOLDER}{it.image_suffix}What is in the image?{it.assistant}"


def find_prompt(checkpoint: Checkpoint, *, given: str | None = None) -> Prompt:
    """Return the prompt of a checkpoint. ``given``, a name in ``PROMPTS`` or a file with a template, replaces it.

    Raises ``CheckpointError`` for a template that the runners cannot express.
    """
    tokens = special_tokens(checkpoint.folder)
    if given is not None:
        if given in PROMPTS:
            return Prompt(PROMPTS[given], f"--prompt-template {given}")
        path = with_home(given)
        if not path.is_file():
            names = ", ".join(PROMPTS)
            raise CheckpointError(f"--prompt-template {given} is neither a file nor one of {names}")
        return Prompt(prompt_template(read_template(path), tokens=tokens), str(path))
    found = find_chat_template(checkpoint.folder)
    if found is None:
        return Prompt(checkpoint.family.prompt, f"the family {checkpoint.family.name}")
    if _is_shortened(found, tokens):
        return Prompt(
            checkpoint.family.prompt,
            f"the family {checkpoint.family.name}; {found.path.name} leaves out the system sentence of its training",
        )
    return Prompt(prompt_template(found, tokens=tokens), found.path.name)


def special_tokens(folder: Path) -> SpecialTokens:
    """Return the special tokens that the tokenizer's files in a checkpoint's folder name; Llama's where none is named.

    Raises ``CheckpointError`` for files that are damaged.
    """
    settings = _object_in(folder / "tokenizer_config.json")
    image = _object_in(folder / "processor_config.json").get("image_token")
    return SpecialTokens(
        bos=_text_of(settings.get("bos_token")) or "<s>",
        eos=_text_of(settings.get("eos_token")) or "</s>",
        image=image if isinstance(image, str) and image else IMAGE_PLACEHOLDER,
        others=tuple(dict.fromkeys(_added(folder, settings))),
    )


def _added(folder: Path, settings: JsonObject) -> Iterator[str]:
    """Yield the texts of tokens that were added to a tokenizer, from each of the files that may list them."""
    yield from _object_in(folder / "added_tokens.json")
    for token in settings.section("added_tokens_decoder", {}).values():
        if text := _text_of(token):
            yield text
    listed = _object_in(folder / "tokenizer.json").get("added_tokens")
    for token in listed if isinstance(listed, list) else ():
        if text := _text_of(token):
            yield text


def _object_in(path: Path) -> JsonObject:
    """Return the JSON object in a file, or an empty one if there is no such file."""
    if path.is_file():
        return read_object(path, error=CheckpointError)
    return JsonObject({}, what=str(path), error=CheckpointError)


def _text_of(token: object) -> str:
    """Return the text of a token, which is text or an object with ``content``; "" for anything else."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _is_shortened(found: ChatTemplate, tokens: SpecialTokens) -> bool:
    """Return whether a template is llava-hf's published one, by what it makes of a conversation."""
    turns, text = SHORTENED
    try:
        return conversation(found, turns, tokens=tokens) == text
    except CheckpointError:
        return False  # it is told as that of any other template
