"""The vocabulary of a language model's GGUF file: tokens, what they are for, and how llama.cpp splits text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguf import GGUFWriter, TokenType

from llava_export.checkpoint.byte_level import ByteLevelTokenizer
from llava_export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from llava_export.checkpoint.sentencepiece import SentencePieceTokenizer
from llava_export.config import LlavaConfig
from llava_export.errors import ExportError
from llava_runner.bpe_model import BpeModel, Digits, Split
from llava_runner.documents import shown
from llava_runner.tokenizer import Piece

MAX_ENDS = 3  # tokens that llama.cpp reads as ends of an answer: of a text, a turn and a message
UNUSED_SCORE = -1000.0
KINDS = {
    Piece.NORMAL: TokenType.NORMAL,
    Piece.UNKNOWN: TokenType.UNKNOWN,
    Piece.CONTROL: TokenType.CONTROL,
    Piece.USER_DEFINED: TokenType.UNUSED,  # if no token has this id
    Piece.UNUSED: TokenType.UNUSED,
    Piece.BYTE: TokenType.BYTE,
}

# The patterns of pre-tokenizers, as files spell them.
WORDS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{WORDS}"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{WORDS}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*")
CASED_WORDS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{CASED[0]}|{CASED[1]}|\p{{N}}|{CASED_WORDS}"
GPT4O = rf"{CASED[0]}{CONTRACTIONS}?|{CASED[1]}{CONTRACTIONS}?|\p{{N}}{{1,3}}|{CASED_WORDS}"
# llama.cpp's name of each way to split a text, and whether a part that is a token as a whole is not merged.
PRE_TOKENIZERS: Mapping[tuple[tuple[Split | Digits, ...], bool], str] = {
    ((Split(GPT2),), False): "gpt-2",
    ((Digits(individual=True), Split(GPT2)), False): "smollm",
    ((Split(LLAMA3),), True): "llama-bpe",
    ((Split(LLAMA3),), False): "smaug-bpe",
    ((Split(QWEN2),), False): "qwen2",
    ((Split(QWEN35),), False): "qwen35",
    ((Split(TEKKEN),), True): "tekken",
    ((Split(GPT4O),), False): "gpt-4o",
}


def pre_tokenizer(model: BpeModel) -> str:
    """Return llama.cpp's name of how a byte-level BPE splits a text. Raises ``ExportError`` if it has none."""
    steps = (*model.steps, *((Split(GPT2),) if model.splits_as_gpt2 else ()))
    name = PRE_TOKENIZERS.get((steps, model.ignore_merges))
    if name is None:
        named = ", ".join(f"Digits({it.individual})" if isinstance(it, Digits) else shown(it.pattern) for it in steps)
        ways = "tokens as a whole" if model.ignore_merges else "merges"
        raise ExportError(
            f"llama.cpp has no name for a tokenizer that splits text by {named or 'nothing'} and then takes {ways}: no "
            "GGUF file can say that"
        )
    return name


def token_types(tokenizer: CheckpointTokenizer, *, vocab_size: int) -> list[tuple[str, float, TokenType]]:
    """Return text, score and type of each token as llama.cpp has them. Rows of a padded vocabulary are unused."""
    found = _of_pieces(tokenizer) if isinstance(tokenizer, SentencePieceTokenizer) else _of_bytes(tokenizer)
    return [found.get(i, (f"[PAD{i}]", UNUSED_SCORE, TokenType.UNUSED)) for i in range(vocab_size)]


def write_vocabulary(
    writer: GGUFWriter, tokenizer: CheckpointTokenizer, *, config: LlavaConfig, eos_ids: Sequence[int]
) -> None:
    """Add the tokens, and which of them begin a text and end an answer. Raises ``ExportError``."""
    texts, scores, types = zip(*token_types(tokenizer, vocab_size=config.text.vocab_size), strict=True)
    writer.add_token_list(texts)
    writer.add_token_types(types)
    if isinstance(tokenizer, ByteLevelTokenizer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer(tokenizer.model))
        writer.add_token_merges([" ".join(pair) for pair in tokenizer.model.merges])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(scores)
        writer.add_unk_token_id(types.index(TokenType.UNKNOWN))
        writer.add_add_space_prefix(tokenizer.rules.prepend_scheme != "never")
    writer.add_bos_token_id(config.bos_id)
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    assert len(adders) == MAX_ENDS
    for add, eos_id in zip(adders, eos_ids, strict=False):
        add(eos_id)
    writer.add_add_eos_token(False)


def begins_with(tokenizer: CheckpointTokenizer, *, bos_id: int, system: str) -> tuple[str, bool]:
    """Return the token that llama.cpp puts before a text, which a chat template leaves out there, and whether it does.

    A byte-level BPE says so itself. Of the others, a prompt whose ``system`` begins with the token does, too.
    """
    bos, adds_bos = tokenizer.begin(bos_id), tokenizer.rules.adds_bos
    if isinstance(tokenizer, ByteLevelTokenizer):
        return (bos, True) if adds_bos else ("", False)
    return bos, adds_bos or system.startswith(bos)


def _of_pieces(tokenizer: SentencePieceTokenizer) -> dict[int, tuple[str, float, TokenType]]:
    """Return text, score and type of each piece of a SentencePiece model."""
    types = {i: KINDS[piece.type] for i, piece in enumerate(tokenizer.pieces)}
    for token in tokenizer.rules.added_tokens:
        if types[token.id] in (TokenType.UNUSED, TokenType.CONTROL):
            types[token.id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    return {i: (piece.piece, piece.score, types[i]) for i, piece in enumerate(tokenizer.pieces)}


def _of_bytes(tokenizer: CheckpointTokenizer) -> dict[int, tuple[str, float, TokenType]]:
    """Return text, score and type of each token of a byte-level BPE. Only added ones are spelled as plain text."""
    assert isinstance(tokenizer, ByteLevelTokenizer)
    types = {
        token.id: TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        for token in tokenizer.rules.added_tokens
    }
    return {i: (text, 0.0, types.get(i, TokenType.NORMAL)) for i, text in tokenizer.spelled.items()}
