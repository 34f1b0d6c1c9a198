"""Which prompt a checkpoint is exported with: the one that is asked for, its own, or its family's."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llava_export.checkpoint.chat_template import (
    ChatTemplate,
    SpecialTokens,
    Turn,
    chat_prompt,
    conversation,
    find_chat_template,
    read_template,
)
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.documents import object_in
from llava_export.errors import CheckpointError
from llava_export.families.prompts import PROMPTS, ChatPrompt
from llava_runner.contract import IMAGE_PLACEHOLDER, MAX_EOS_IDS, PromptTemplate
from llava_runner.paths import with_home

# llava-hf's published template, which leaves out the system sentence that its models were trained with.
SHORTENED = (
    (Turn("1", "2", has_image=True), Turn("3", "4"), Turn("5")),
    "USER: <image>\n1 ASSISTANT: 2 USER: 3 ASSISTANT: 4 USER: 5 ASSISTANT:",
)
GIVEN = "--prompt-template"  # with which the source of a prompt begins that was asked for
MARKER = re.compile(r"<\|[^<>|\s]+\|>")  # how most tokenizers spell tokens that mark structure


@dataclass(frozen=True)
class Prompt:
    """The prompt of an export, and where it comes from. ``notes`` says what is doubtful about it.

    ``jinja`` is the chat template that it was made from, or None.
    """

    chat: ChatPrompt
    source: str
    notes: tuple[str, ...] = ()
    jinja: str | None = None

    @property
    def template(self) -> PromptTemplate:
        """The pieces that the runners put together."""
        return self.chat.template

    def example(self) -> str:
        """Return a turn with an image, as the model reads it."""
        return example_turn(self.template)


def example_turn(template: PromptTemplate) -> str:
    """Return a turn with an image, as a model with this template reads it."""
    image = template.image_start + IMAGE_PLACEHOLDER + template.image_end
    parts = (image, template.image_separator, "What is in the image?")
    text = "".join(reversed(parts) if template.image_last else parts)
    return template.system + template.user + text + template.assistant


def find_prompt(checkpoint: Checkpoint, *, given: str | None = None) -> Prompt:
    """Return the prompt of a checkpoint. ``given``, a name in ``PROMPTS`` or a file with a template, replaces it.

    Where ``config.json`` puts tokens around an image, they stand there in each of them: LLaVA's code adds them to what
    is asked, whatever the prompt. Raises ``CheckpointError`` for a template that the runners cannot express, where the
    tokenizer lacks those tokens, and as ``stop_ids`` does.
    """
    prompt = _around_image(_found(checkpoint, given), checkpoint)
    stop_ids(prompt, checkpoint)
    chat = prompt.chat
    if chat.is_dated:
        prompt = replace(prompt, source=f"{prompt.source}, with the date of the export")
    known = {token.content for token in checkpoint.tokenizer.rules.added_tokens}
    pieces = (chat.template.system, chat.template.user, chat.template.assistant, chat.template.answer_end)
    unknown = [marker for marker in dict.fromkeys(MARKER.findall("".join(pieces))) if marker not in known]
    if not unknown:
        return prompt
    note = f"the prompt has {', '.join(unknown)}, which the tokenizer reads as ordinary text"
    return replace(prompt, notes=(*prompt.notes, note))


def _around_image(prompt: Prompt, checkpoint: Checkpoint) -> Prompt:
    """Return the prompt with the tokens that stand around an image, if there are any. Raises ``CheckpointError``."""
    if checkpoint.config.around_image is None:
        return prompt
    known = {token.content for token in checkpoint.tokenizer.rules.added_tokens}
    if missing := [text for text in checkpoint.config.around_image if text not in known]:
        raise CheckpointError(
            f"config.json has mm_use_im_start_end, and the tokenizer lacks {' and '.join(missing)}: add what "
            "added_tokens.json of the model it was trained from says of them"
        )
    start, end = checkpoint.config.around_image
    template = replace(prompt.template, image_start=start, image_end=end)
    return replace(prompt, chat=replace(prompt.chat, template=template))


def stop_ids(prompt: Prompt, checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return the tokens that end an answer: the checkpoint's, and the one with which its prompt ends an answer.

    Raises ``CheckpointError`` if they are more than a runner takes.
    """
    end = prompt.template.answer_end.lstrip()
    special = [token for token in checkpoint.tokenizer.rules.added_tokens if token.special]
    ends = [it for it in special if it.id != checkpoint.config.bos_id and end.startswith(it.content)]
    longest = max(ends, key=lambda token: len(token.content), default=None)
    ids = tuple(dict.fromkeys((*checkpoint.config.eos_ids, *([longest.id] if longest else []))))
    if len(ids) > MAX_EOS_IDS:
        raise CheckpointError(f"{len(ids)} tokens end an answer; at most {MAX_EOS_IDS} are taken")
    return ids


def special_tokens(checkpoint: Checkpoint) -> SpecialTokens:
    """Return the special tokens that a template may use. Raises ``CheckpointError`` for files that are damaged."""
    tokenizer = checkpoint.tokenizer
    image = object_in(checkpoint.file("processor_config.json")).get("image_token")
    return SpecialTokens(
        bos=tokenizer.begin(checkpoint.config.bos_id),
        eos=tokenizer.text(tokenizer.eos_id if tokenizer.eos_id >= 0 else checkpoint.config.eos_ids[0]),
        image=image if isinstance(image, str) and image else IMAGE_PLACEHOLDER,
        others=[token.content for token in tokenizer.rules.added_tokens if token.special],
    )


def _found(checkpoint: Checkpoint, given: str | None) -> Prompt:
    """Return the prompt as ``find_prompt`` does, without a word about what is doubtful."""
    if checkpoint.config.vision is None:
        return Prompt(checkpoint.family.prompt, "none: it reads what the model reads that it drafts for")
    if given in PROMPTS:
        return Prompt(PROMPTS[given], f"{GIVEN} {given}")
    tokens = special_tokens(checkpoint)
    if given is not None:
        path = with_home(given)
        if not path.is_file():
            names = ", ".join(PROMPTS)
            raise CheckpointError(f"--prompt-template {given} is neither a file nor one of {names}")
        template = read_template(path)
        return Prompt(chat_prompt(template, tokens=tokens), f"{GIVEN} {given}", jinja=template.text)
    templates = (find_chat_template(folder) for folder in checkpoint.own_folders)
    found = next((template for template in templates if template is not None), None)
    family = f"the family {checkpoint.family.name}"
    if found is None:
        return Prompt(checkpoint.family.prompt, family)
    if _is_shortened(found, tokens):
        source = f"{family}; {found.path.name} leaves out the system sentence of its training"
        return Prompt(checkpoint.family.prompt, source)
    return Prompt(chat_prompt(found, tokens=tokens), found.path.name, jinja=found.text)


def _is_shortened(found: ChatTemplate, tokens: SpecialTokens) -> bool:
    """Return whether a template is llava-hf's published one, by what it makes of a conversation."""
    turns, text = SHORTENED
    try:
        return conversation(found, turns, tokens=tokens) == text
    except CheckpointError:
        return False  # it is told as that of any other template
