"""What is doubtful about a checkpoint that can be exported: prompt, tokens, ends, images, sampling."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.documents import object_in
from llava_export.checkpoint.generation import GENERATION_CONFIG, TOP_K
from llava_export.checkpoint.prompt import Prompt, stop_ids
from llava_export.doctor.findings import Finding, doubtful

PADDING = 64  # rows of an embedding beyond the tokenizer: sizes are often rounded up to such a multiple
TRAINED = "pad"  # what all families here did with images in training
FEW_TOKENS = 16  # of an answer
ROOM = 128  # positions for a question and an answer beside an image
# How tokens that mark turns are spelled: <|im_start|>, <start_of_turn>, [INST], <|end|>.
TURN_MARKER = re.compile(r"<\|[^<>|\s]+\|>|<(start|end)_of_turn>|\[/?INST\]")
# What a note of ``open_checkpoint`` or ``find_prompt`` calls for, by words in it. The first that fits is taken.
REMEDIES = (
    ("ordinary text", "Add them to the tokenizer as special tokens, or choose another --prompt-template."),
    ("begins a text with the id", "If these are wrong, correct bos_token_id and eos_token_id in config.json."),
    ("sizes of the vision tower", "Give a folder with the tower's config.json: --vision-tower FOLDER."),
    ("replaces the one that is inside", "Leave --vision-tower out, unless you mean to replace it."),
    ("ties the head", "If the head should be tied, delete the one that is stored; if not, correct config.json."),
    ("index", "Delete the files of weights that are out of date, so that it is plain which ones are meant."),
)
OTHER_REMEDY = "If that is not what you mean, change the file that it names."


def doubts(checkpoint: Checkpoint, prompt: Prompt) -> Iterator[Finding]:
    """Yield what is doubtful about a checkpoint and the prompt that it is exported with."""
    for said in (*checkpoint.notes, *prompt.notes):
        if not said.startswith(f"{checkpoint.name}: "):  # which parts it is made of
            yield doubtful(said, next((remedy for words, remedy in REMEDIES if words in said), OTHER_REMEDY))
    yield from _prompt_doubts(checkpoint, prompt)
    yield from _token_doubts(checkpoint)
    yield from _image_doubts(checkpoint)
    yield from _sampling_doubts(checkpoint)


def _prompt_doubts(checkpoint: Checkpoint, prompt: Prompt) -> Iterator[Finding]:
    """Yield what is doubtful about the words of a prompt."""
    template = prompt.template
    text = "".join((template.system, template.user, template.assistant, template.answer_end))
    if prompt.chat.is_dated:
        yield doubtful(
            "its chat template has today's date in it: the package keeps the date of its export",
            "Give a copy of the template without the date: --prompt-template FILE.",
        )
    added = [token.content for token in checkpoint.tokenizer.rules.added_tokens]
    markers = [content for content in added if TURN_MARKER.fullmatch(content)]
    if markers and not any(marker in text for marker in markers):
        yield doubtful(
            f"its tokenizer has {', '.join(markers[:4])}, which mark turns, and its prompt, from {prompt.source}, has "
            "none of them",
            "Put the chat template of its training into the folder (chat_template.jinja), or choose one with "
            "--prompt-template.",
        )
    ends = [checkpoint.tokenizer.text(i) for i in stop_ids(prompt, checkpoint)]
    end = template.answer_end.lstrip()
    if not any(spelled and end.startswith(spelled) for spelled in ends):
        said = f"its prompt ends an answer with {end!r}" if end else "its prompt has nothing at the end of an answer"
        yield doubtful(
            f"{said}, and answers stop at {' or '.join(ends)}: one that was trained without that may not stop",
            f"Add the token that ends its answers to eos_token_id in {GENERATION_CONFIG}.",
        )
    begin = checkpoint.tokenizer.begin(checkpoint.config.bos_id)
    if not checkpoint.tokenizer.rules.adds_bos and not (template.system + template.user).startswith(begin):
        yield doubtful(
            f"its conversations do not begin with {begin}, as Llama was trained: the tokenizer's settings say so",
            "If it was trained with it, set add_bos_token to true in tokenizer_config.json.",
        )


def _token_doubts(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield what is doubtful about the numbers and the ids of tokens."""
    tokenizer, text = checkpoint.tokenizer, checkpoint.config.text
    unused = text.vocab_size - tokenizer.vocab_size
    if unused > PADDING:
        yield doubtful(
            f"the embedding has {unused} rows more than the tokenizer has tokens: tokens that were added in training "
            "may be missing",
            "Copy the tokenizer's files of the fine-tune (added_tokens.json, tokenizer_config.json, tokenizer.json).",
        )
    generation = object_in(checkpoint.file(GENERATION_CONFIG))
    named = generation.integers("eos_token_id", ()) if generation.get("eos_token_id") is not None else ()
    if named and tokenizer.eos_id >= 0 and tokenizer.eos_id not in named:
        yield doubtful(
            f"{GENERATION_CONFIG} ends an answer with {', '.join(map(str, named))} and the tokenizer with "
            f"{tokenizer.eos_id} ({tokenizer.text(tokenizer.eos_id)}): any of them ends it here",
            f"Name all that end an answer as eos_token_id in {GENERATION_CONFIG}.",
        )
    room = text.max_context_len - checkpoint.config.num_image_tokens
    if room < ROOM:
        yield doubtful(
            f"an image takes {checkpoint.config.num_image_tokens} of {text.max_context_len} positions, which "
            f"leaves {room} for text",
            "Check max_position_embeddings and sliding_window in config.json: those of published models are about 2048 "
            "or more.",
        )


def _image_doubts(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield that images are prepared otherwise than the family's were in training."""
    images = checkpoint.images
    if images.aspect_ratio != TRAINED:
        yield doubtful(
            f"images are {images.text()}, as {images.source} says; {checkpoint.family.name} was trained with images "
            "padded to a square",
            "To pad them, run with --image-aspect-ratio pad, or change it there before the export (do_pad; "
            "image_aspect_ratio in the layout of LLaVA's authors).",
        )


def _sampling_doubts(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield settings of sampling that contradict each other, or cut answers short."""
    settings = object_in(checkpoint.file(GENERATION_CONFIG))
    defaults = {"temperature": 1, "top_p": 1, "top_k": TOP_K, "min_p": 0}
    unused = [
        f"{name} {settings[name]}" for name, default in defaults.items() if settings.get(name) not in (None, default)
    ]
    if unused and not settings.flag("do_sample", False):
        yield doubtful(
            f"{GENERATION_CONFIG} has {' and '.join(unused)}, but not do_sample: answers are the likeliest tokens",
            "To sample, set do_sample to true there, or use --temperature and --top-p of llava run.",
        )
    limit = checkpoint.generation.max_new_tokens
    if 0 < limit < FEW_TOKENS:
        yield doubtful(
            f"{GENERATION_CONFIG} ends answers after {limit} tokens (max_new_tokens)",
            "Raise max_new_tokens there, or give it to Session; llava run has a limit of its own.",
        )
