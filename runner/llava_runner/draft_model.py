"""A small language model that guesses what a large one will say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava_runner.errors import PackageError
from llava_runner.model import ModelWithCard, most_likely
from llava_runner.program_file import check_file, find_program, find_tokenizer
from llava_runner.tokenizer_file import AnyTokenizer, load_tokenizer


class DraftModel:
    """A model that reads the text of a conversation, without images, and guesses what it finds most likely itself."""

    def __init__(self, model: ModelWithCard, *, vocab_size: int) -> None:
        """Take over a model, to draft for one whose tokenizer has ``vocab_size`` tokens."""
        self._model = model
        self._vocab_size = min(model.card.tokenizer_vocab_size, vocab_size)  # of the tokens that both have
        self._cached: list[int] = []  # what its KV cache holds

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """Return at most ``most`` tokens that may follow ``ids``.

        There are fewer where the context has no room for them, and none where the model lacks one of the tokens.
        """
        most = min(most, self._model.card.max_context_len - len(ids))
        if most < 1 or max(ids) >= self._vocab_size:
            return []
        text = list(ids)
        pairs = zip(self._cached, text, strict=False)
        start = next((i for i, (one, other) in enumerate(pairs) if one != other), len(self._cached))
        start = min(start, len(text) - 1)  # the last is read again, for its logits
        for _ in range(most):
            del self._cached[start:]  # where reading fails, the rest may be overwritten
            logits = self._model.decode(self._model.embed(text[start:]), position=start)
            self._cached += text[start:]
            start = len(text)
            text.append(most_likely(logits[: self._vocab_size]))
        return text[-most:]


def find_draft(package: Path, *, tokenizer: AnyTokenizer) -> Path:
    """Return the program of a package that is to draft for a model with this tokenizer. No weights are read.

    Raises ``PackageError``, also where both read ids as different texts.
    """
    path = find_program(package)
    check_file(path)
    draft = load_tokenizer(find_tokenizer(path.parent))
    for token_id in range(min(draft.vocab_size, tokenizer.vocab_size)):
        found, expected = (each.decode_piece(token_id) for each in (draft, tokenizer))
        if found != expected:
            raise PackageError(
                f"{path} cannot draft for this model: its vocabulary is another, token {token_id} is "
                f"'{found.decode(errors='replace')}' and not '{expected.decode(errors='replace')}'; take a model with "
                "the same tokenizer"
            )
    return path
