"""A byte-level BPE of a checkpoint, which its ``tokenizer.json`` has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llava_export.checkpoint.added_tokens import content_of, find_added
from llava_export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from llava_export.errors import CheckpointError
from llava_runner.bpe_model import BpeModel, begin_of_text, token_bytes
from llava_runner.bpe_tokenizer import BpeTokenizer
from llava_runner.contract import TOKENIZER_JSON, TokenizerRules
from llava_runner.documents import JsonObject, shown


@dataclass(frozen=True)
class ByteLevelTokenizer(CheckpointTokenizer):
    """A checkpoint's tokenizer. ``content`` is its ``tokenizer.json``, as it is, and ``model`` what that says."""

    content: bytes
    model: BpeModel

    @cached_property
    def spelled(self) -> Mapping[int, str]:
        """The spelling of each token by its id: in characters of the alphabet of bytes, or the text of an added one."""
        return {
            **{token_id: text for text, token_id in self.model.vocab.items()},
            **{token.id: token.content for token in self.rules.added_tokens},
        }

    @property
    def vocab_size(self) -> int:
        """The number of tokens: one more than the largest id."""
        return max(self.spelled) + 1

    @property
    def files(self) -> Mapping[str, bytes]:
        """The checkpoint's own file."""
        return {TOKENIZER_JSON: self.content}

    @property
    def needs_bos(self) -> bool:
        """False: Qwen's have none, and GPT-2's is also the one that ends texts."""
        return False

    def base(self) -> BpeTokenizer:
        """Return the tokenizer as a runner opens it."""
        return BpeTokenizer(self.model)

    def text(self, token_id: int) -> str:
        """Return the text of a token; "" for an id that no token has."""
        text = self.spelled.get(token_id, "")
        is_added = any(token.id == token_id for token in self.rules.added_tokens)
        return text if is_added else token_bytes(text).decode(errors="replace")

    def begin(self, bos_id: int) -> str:
        """Return how the token is spelled that conversations begin with; "" where the tokenizer has none."""
        return self.text(bos_id) if self.bos_id >= 0 else ""


def open_byte_level(
    folder: Path, settings: JsonObject, tokenizer_json: JsonObject, *, vocab_size: int, image_begins_text: bool
) -> ByteLevelTokenizer:
    """Return the tokenizer in a checkpoint's folder, checked, as ``open_tokenizer`` does.

    ``settings`` are those of ``tokenizer_config.json``, which may be empty.
    """
    base = BpeTokenizer.from_document(tokenizer_json)
    begin, model = begin_of_text(tokenizer_json), base.model
    ids = {text: token_id for token_id, text in model.texts.items()}
    if len(model.vocab) > vocab_size or max(model.vocab.values()) >= vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(model.vocab)} tokens and the model's vocabulary {vocab_size}; it belongs to "
            "another model"
        )
    if settings.flag("add_prefix_space", False):
        raise CheckpointError(f"{settings.where('add_prefix_space')} is true, which tokenizer.json does not do")
    added = find_added(folder, settings, tokenizer_json, own=(), ids=ids, vocab_size=vocab_size)
    spelled = model.texts
    for token in added.tokens:
        if spelled.get(token.id, token.content) != token.content or ids.get(token.content, token.id) != token.id:
            raise CheckpointError(
                f"the added token {shown(token.content)} has the id {token.id}, and tokenizer.json another token of "
                "that id or text"
            )
        ids[token.content] = token.id
    bos, eos = (content_of(settings.get(name)) for name in ("bos_token", "eos_token"))
    if begin is not None and begin not in ids:
        raise CheckpointError(f"{tokenizer_json.where('post_processor')} begins texts with {shown(begin)}, no token")
    rules = TokenizerRules(
        prepend_scheme="never",
        image_begins_text=image_begins_text,
        adds_bos=begin is not None,
        added_tokens=added.tokens,
    )
    return ByteLevelTokenizer(
        source=TOKENIZER_JSON,
        rules=rules,
        bos_id=ids.get(bos if begin is None else begin, -1),
        eos_id=ids.get(eos, -1),
        notes=added.notes,
        content=(folder / TOKENIZER_JSON).read_bytes(),
        model=model,
    )
