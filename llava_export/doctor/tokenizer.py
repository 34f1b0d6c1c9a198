"""The tokenizers and the golden record of a package against its model card."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from llava_export.doctor.findings import Finding, broken, doubtful, note
from llava_export.families import FAMILIES, TEXT_ONLY
from llava_export.pte.golden import GoldenRecord, golden_chunks
from llava_runner import contract
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import IMAGE_PLACEHOLDER, TOKENIZERS, ModelCard
from llava_runner.errors import PackageError
from llava_runner.prompt import Chunk, chunk_text
from llava_runner.tokenizer_file import AnyTokenizer, load_tokenizer

REPLACE = "Copy the tokenizer that was exported with the program, or export again with --with-artifacts."


def tokenizers_in(folder: Path) -> list[Path]:
    """Return the tokenizers of a package. A runner takes the first one."""
    return [folder / name for name in TOKENIZERS if (folder / name).exists()]


def check_tokenizers(
    program: Path, card: ModelCard, *, golden: GoldenRecord | None, damaged: Collection[str]
) -> Iterator[Finding]:
    """Yield what is wrong with the tokenizers beside a program. ``golden`` has a question with its tokens.

    Of those whose names are in ``damaged``, it has been told that they are not as they were.
    """
    paths = tokenizers_in(program.parent)
    if not paths:
        yield doubtful(
            f"there is no {', no '.join(TOKENIZERS)}",
            "Name one with --tokenizer-path of llava run, or export again with --with-artifacts.",
        )
    readings = []
    for path in paths:
        try:
            tokenizer = load_tokenizer(path)
        except PackageError as error:
            if path.name not in damaged:
                yield broken(str(error), REPLACE)
            continue
        try:
            chat = ChatTokenizer.of(card, tokenizer)
        except PackageError as error:
            yield broken(f"{path.name} does not fit the program: {error}", REPLACE)
            continue
        if problem := _misfit(tokenizer, chat, card, golden):
            yield broken(f"{path.name} does not fit the program: {problem}", REPLACE)
        if chunks := _golden_chunks(card):
            readings.append(chat.encode_turn(chunks))
    if golden is None and any(reading != readings[0] for reading in readings):
        yield broken(f"{' and '.join(path.name for path in paths)} make different tokens of a question", REPLACE)


def open_golden(program: Path, card: ModelCard) -> tuple[GoldenRecord | None, Finding | None]:
    """Return the golden record of a program, or None and why there is none that can be used."""
    path = contract.golden_path(program)
    remedy = "Copy it again, or export the model again without --no-golden."
    if not path.exists():
        return None, note(f"there is no {path.name}: llava verify has nothing to compare with", remedy)
    try:
        golden = GoldenRecord.load(path)
        golden.check(card)
    except PackageError as error:
        return None, doubtful(f"llava verify cannot use {path.name}: {error}", remedy)
    return golden, None


def check_golden(card: ModelCard, golden: GoldenRecord) -> Iterator[Finding]:
    """Yield what is doubtful about a golden record that fits a program's sizes."""
    if not golden.agreed:
        yield note(
            "no other library has read the golden question, so a mistake in how it was read would not show",
            "Export again where transformers is installed, or compare: llava verify PACKAGE --against CHECKPOINT.",
        )
    chunks = _golden_chunks(card)
    if chunks and IMAGE_PLACEHOLDER.join(map(chunk_text, chunks)) != golden.prompt:
        yield doubtful(
            f"the golden record asks {golden.prompt!r}, which the program's prompt does not make",
            "It belongs to another export: copy the one beside the program, or export the model again.",
        )


def _misfit(tokenizer: AnyTokenizer, chat: ChatTokenizer, card: ModelCard, golden: GoldenRecord | None) -> str | None:
    """Return what a tokenizer of the right size does otherwise than the model's, or None."""
    for token in card.tokenizer.added_tokens:
        found = tokenizer.decode_piece(token.id)
        if found not in (b"", token.content.encode()) and not tokenizer.is_unknown(token.id):
            return f"the id {token.id} is {found.decode(errors='replace')!r} there, and the model's {token.content!r}"
    chunks = _golden_chunks(card)
    if golden is None or not chunks or IMAGE_PLACEHOLDER.join(map(chunk_text, chunks)) != golden.prompt:
        return None
    expected = [golden.ids_before.tolist(), golden.ids_after.tolist()][: len(chunks)]
    if chat.encode_turn(chunks) != expected:
        return "it makes other tokens of the golden question than the export did"
    return None


def _golden_chunks(card: ModelCard) -> tuple[Chunk, ...]:
    """Return the golden question of a card's family in its prompt; nothing for a family that is not known."""
    families = (*FAMILIES, TEXT_ONLY)
    question = next((family.question for family in families if family.name == card.family), None)
    return () if question is None else golden_chunks(question, card)
