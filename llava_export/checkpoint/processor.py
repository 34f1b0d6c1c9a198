"""transformers' own reading of prompts and images: what an export is compared with, where transformers is installed.

Nothing else in an export uses transformers. So a mistake in how a checkpoint is read here is not repeated there.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llava_export.checkpoint.byte_level import ByteLevelTokenizer
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.documents import object_in
from llava_export.errors import CheckpointError
from llava_export.system import available_memory
from llava_runner.contract import IMAGE_PLACEHOLDER

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


MEMORY_FRACTION = 0.7  # of the free memory, that transformers' model in float32 may take


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what transformers and torchao say while they are imported, mostly about other machines than this one."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Processor:
    """transformers' processor of a checkpoint in llava-hf's layout, or its tokenizer where there is no processor.

    ``name`` says for people what it is. ``reads_images`` is False for a tokenizer alone, which may follow templates all
    the same (``has_templates``). ``image_token`` is how prompts spell an image.
    """

    def __init__(
        self, name: str, *, tokenizer: Any, processor: Any, image_size: int, has_templates: bool = False
    ) -> None:
        self.name = name
        self.reads_images = processor is not None
        self.image_token = processor.image_token if self.reads_images else IMAGE_PLACEHOLDER
        self._tokenizer = tokenizer
        self._processor = processor
        self._image_size = image_size
        self._has_templates = has_templates

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> Processor | None:
        """Return the processor of a checkpoint, or None where it has none or transformers is not installed.

        Raises ``CheckpointError`` if transformers cannot read the checkpoint's files.
        """
        try:
            with _quiet():
                import transformers

            library = f"transformers {version('transformers')}"
        except (ImportError, PackageNotFoundError):
            return None
        file = None if checkpoint.family.chunks_are_texts else checkpoint.file("processor_config.json")
        is_byte_level = isinstance(checkpoint.tokenizer, ByteLevelTokenizer)
        has_processor = file is not None and checkpoint.file("tokenizer.json") is not None
        if not checkpoint.family.chunks_are_texts and not has_processor and not is_byte_level:
            return None  # of a tokenizer.model alone, transformers 5 makes one that begins no text with BOS
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        names = ("tokenizer_config.json", checkpoint.tokenizer.source)
        path = next((path for path in map(checkpoint.file, names) if path is not None), None)
        assert path is not None  # the checkpoint is open, so it has a tokenizer
        size = checkpoint.images.size
        try:
            if file is not None:
                with _quiet():
                    processor = transformers.AutoProcessor.from_pretrained(file.parent, backend="pil")
                if file.parent != path.parent:  # an adapter with a tokenizer of its own
                    processor.tokenizer = tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent)
                    processor.image_token_id = tokenizer.convert_tokens_to_ids(processor.image_token)
                if getattr(processor, "patch_size", 0) is None:  # older files do not say how many tokens an image takes
                    vision = checkpoint.config.vision
                    assert vision is not None  # there is a processor of images
                    processor.patch_size = vision.patch_size
                    processor.num_additional_image_tokens = vision.num_rows - vision.num_patches
                    processor.vision_feature_select_strategy = "full" if vision.keep_first_row else "default"
                name = f"{library}, {type(processor).__name__}"
                return cls(name, tokenizer=processor.tokenizer, processor=processor, image_size=size)
            if is_byte_level:
                # Without a class in its settings, a model of this kind would be taken for one with SentencePiece.
                named = object_in(path.parent / "tokenizer_config.json").get("tokenizer_class")
                reads = transformers.AutoTokenizer if named else transformers.PreTrainedTokenizerFast
                tokenizer = reads.from_pretrained(path.parent)
                name = f"{library}, {type(tokenizer).__name__}"
                return cls(name, tokenizer=tokenizer, processor=None, image_size=size, has_templates=True)
            # Where nothing is said, tokenizers from before transformers 5 are meant, which took "legacy" for true.
            says = object_in(path.parent / "tokenizer_config.json").get("legacy") is not None
            unsaid: dict[str, Any] = {} if says else {"legacy": True}
            tokenizer = transformers.LlamaTokenizer.from_pretrained(path.parent, **unsaid)
            name = f"{library}, {type(tokenizer).__name__}"
            return cls(name, tokenizer=tokenizer, processor=None, image_size=size)
        except Exception as error:  # the library's errors about files have no common class
            raise CheckpointError(f"{library} cannot read the tokenizer in {path.parent}: {error}") from error

    def prompt_ids(self, texts: Sequence[str], *, adds_bos: bool) -> list[list[int]]:
        """Return the ids of a prompt: of its texts, which images stand between. ``adds_bos`` if the tokenizer does."""
        if self._processor is None:
            # LLaVA's own code tokenizes what follows an image as a text of its own.
            found = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            bos = self._tokenizer.bos_token
            begins = adds_bos and bos is not None and not texts[0].startswith(bos)
            return [[*([self._tokenizer.bos_token_id] if begins else []), *found[0]], *found[1:]]
        import numpy as np

        blank = np.zeros((self._image_size, self._image_size, 3), np.uint8)
        return self.around_images(self.inputs(texts, blank)["input_ids"][0].tolist())

    def inputs(self, texts: Sequence[str], picture: Any) -> Any:
        """Return what transformers' model reads of texts with a picture between them, as tensors by name."""
        text = self.image_token.join(texts)
        spells_bos = text.startswith(self._tokenizer.bos_token or "\0")
        images = [picture] * (len(texts) - 1) or None
        return self._processor(text=text, images=images, add_special_tokens=not spells_bos, return_tensors="pt")

    def around_images(self, ids: Sequence[int]) -> list[list[int]]:
        """Return the ids before, between and after the runs of an image's own."""
        chunks: list[list[int]] = [[]]
        for is_image, run in groupby(ids, key=lambda token_id: token_id == self._processor.image_token_id):
            if is_image:
                chunks.append([])
            else:
                chunks[-1] += run
        return chunks

    def prompt_text(self, chat_template: str, question: str) -> str | None:
        """Return what a chat template makes of a question about an image, or None where it cannot be asked."""
        speaker = self._processor or self._tokenizer
        if self._processor is None and not self._has_templates:
            return None
        image = self.image_token
        for content in (
            [{"type": "image"}, {"type": "text", "text": question}],
            f"{image}\n{question}",
        ):
            try:
                text = speaker.apply_chat_template(
                    [{"role": "user", "content": content}],
                    chat_template=chat_template,
                    add_generation_prompt=True,
                    tokenize=False,
                )
            except Exception:  # templates raise what they like at a message whose form they do not take
                continue
            if image in text and "{'type'" not in text:
                return str(text)
        return None


class Original:
    """transformers' own model of a checkpoint in llava-hf's layout, in float32. ``name`` says for people what it is."""

    def __init__(self, processor: Processor, model: Any) -> None:
        self.name = f"the model and processor of {processor.name}"
        self._processor = processor
        self._model = model

    @classmethod
    def open(cls, checkpoint: Checkpoint, processor: Processor | None) -> Original | None:
        """Return the model of a checkpoint, or None where transformers cannot open it, or memory does not suffice."""
        if processor is None or not processor.reads_images or checkpoint.parts:
            return None
        import torch
        import transformers

        model = checkpoint.build_model(max_context_len=1)
        needed = sum(math.prod(it.shape) for it in checkpoint.weights.tensors(model)) * torch.float32.itemsize
        free = available_memory()
        if free is not None and needed > MEMORY_FRACTION * free:
            return None
        folder = checkpoint.own_folders[0]
        llava = transformers.LlavaForConditionalGeneration
        return cls(processor, llava.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval())

    def answer(
        self, texts: Sequence[str], picture: Image.Image, *, max_tokens: int, eos_ids: Sequence[int]
    ) -> tuple[list[list[int]], Tensor, list[int], list[Tensor]]:
        """Return the ids of a conversation around its picture, the picture's features, and the greedy answer's tokens.

        With each token come the logits ``[vocab_size]`` that it was chosen from.
        """
        import torch
        import transformers

        inputs = self._processor.inputs(texts, picture)
        settings = transformers.GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(eos_ids),
            pad_token_id=eos_ids[0],
            output_logits=True,
            return_dict_in_generate=True,
        )
        with torch.no_grad():
            features = self._model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
            output = self._model.generate(**inputs, generation_config=settings)
        tokens = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        ids = self._processor.around_images(inputs["input_ids"][0].tolist())
        return ids, torch.stack(list(features)), tokens, [logits[0] for logits in output.logits]


def check_question(
    processor: Processor | None,
    *,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    question: str,
    chat_template: str | None,
    adds_bos: bool,
) -> str:
    """Return the name of the library that reads a question as the export does; "" where none is installed.

    ``texts`` and ``ids`` are what the export makes of the ``question`` before and after an image, if there is one, and
    ``chat_template`` is the Jinja template that its prompt is from, or None. Raises ``CheckpointError`` where the
    library reads it otherwise.
    """
    if processor is None:
        return ""
    theirs = processor.prompt_text(chat_template, question) if chat_template is not None else None
    ours = processor.image_token.join(texts)
    if theirs is not None and theirs != ours:
        raise CheckpointError(f"{processor.name} makes another prompt of the question: {theirs!r}, not {ours!r}")
    found = processor.prompt_ids(texts, adds_bos=adds_bos)
    for what, expected, own in zip(("before", "after")[: len(ids)], found, ids, strict=True):
        if list(expected) != list(own):
            raise CheckpointError(
                f"{processor.name} makes other tokens of the question: {what} the image it has {list(expected)}, and "
                f"the export {list(own)}"
            )
    return processor.name
