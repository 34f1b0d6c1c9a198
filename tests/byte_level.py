"""Small byte-level BPE tokenizers with the pre-tokenizers of published models, and texts in many scripts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests import chat_templates
from tests.checkpoints import FEW_LAYERS, Shape, random_llava

ROWS = 1280  # of the embedding of a checkpoint, a few more than tokens
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEXTS = (
    "The harbour was quiet in the morning, and the boats lay side by side. He'd said that they'll sail at 7:45, but "
    "nobody's sure: it's 1,234.5 miles to the next port. WE'RE NOT LATE, she'd written; THAT'S FINE.",
    "Der Müller fährt früh über die Brücke, und die großen Räder drehen sich langsam im kühlen Wasser des Flusses.",
    "L'été dernier, nous avons traversé la forêt à pied; où étaient les garçons? Ça n'a pas d'importance, dit-elle.",
    "Зимой река замерзает, и дети катаются на коньках до самого вечера. В деревне тихо, только собаки лают вдали.",
    "Το πρωί ο ήλιος ανέβηκε πάνω από τα βουνά και η θάλασσα έλαμπε. Τα παιδιά έπαιζαν στην αμμουδιά.",
    "春天来了，河边的柳树发了新芽。孩子们在田野里放风筝，老人坐在门口喝茶聊天。今天是2024年3月15日。",
    "山の上に小さな神社があります。毎年秋になると、村の人々が集まってお祭りをします。カメラを持って行きました。",
    "아침에 눈이 내려서 마당이 하얗게 되었다. 아이들은 눈사람을 만들고 할머니는 따뜻한 차를 끓이셨다.",
    "في الصباح الباكر خرج الصياد إلى البحر ومعه شبكته القديمة، وعاد في المساء بسمك كثير. ١٢٣٤ كيلو.",
    "गाँव के बाहर एक पुराना पेड़ है जिसके नीचे बच्चे खेलते हैं। शाम को सब लोग वहाँ बैठकर कहानियाँ सुनते हैं।",
    "ตลาดเช้าเต็มไปด้วยผลไม้และดอกไม้ คนขายยิ้มให้ลูกค้าทุกคน แม้ฝนจะตกก็ตาม",
    "בבוקר הלכנו לשוק וקנינו לחם טרי, זיתים וגבינה. אחר כך ישבנו בגינה ושתינו תה עם נענע.",
    "def area(shape):\n    if shape.kind == 'circle':\n        return 3.14159 * shape.r ** 2\n\n    # TODO: others\n"
    '    raise ValueError(f"{shape!r} isn\'t known")\n\n\nfor (int i = 0; i < 128; ++i) {\n\ttotal += a[i];\n}\r\n',
    "🙂 😀😃 👩‍👩‍👧 👍🏽 🇫🇷🇯🇵 🚀🚀 ❤️ ✅ ½ Ⅷ ² ﬁ e\u0301a\u0308 \u1112\u1161\u11ab Å ế \u00a0\u3000\u200b\ufeff",
)
ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz ABCXYZ'", "0123456789 ٠١٢३४५²½Ⅷ", "     \t\n\r\u00a0\u3000\u2003\u0085\u200b\ufeff",
    "éàüßñõçøÅ", "абвгдежЯЮ", "αβγδΩάέ", "漢字仮名的一是", "ひらがなカタカナ", "한국어글자", "ابجدهوز،؟", "कखगघाि्ी",
    "ไทยภาษา้่", "אבגדה", "🙂👩‍👧🏽🇫🇷❤️", ".,;:!?()[]{}<>|/\\@#$%^&*-_=+~`\"",
    "e\u0301\u0308a\u0323o\u0302\u1112\u1161\u11ab\u0344",
    "\x00\x01\x1b\x7f\ufffd\u2028\U0010ffff\ue000",
)  # fmt: skip
WORDS = (
    "'s", "'RE", "'ll", "'D", "\r\n", "\n\n\n", "        ", "\t\t", "123456", "<|im_start|>", "<|endoftext|>",
    "<|eot_id|>", "<|im", "[SEG]", "<image>", "Ġthe", "ĊĊ", "’s", "http://a.b/c?d=1", "   x", "\u0301",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What sets a model's tokenizer apart. ``before`` are special tokens in the vocabulary, ``after`` those behind it.

    With ``begins``, each text begins with the first special token. ``steps`` make the pre-tokenizer.
    """

    steps: tuple[pre_tokenizers.PreTokenizer, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    begins: bool = False
    is_nfc: bool = False
    ignore_merges: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def _split(pattern: str) -> tuple[pre_tokenizers.PreTokenizer, ...]:
    """Return the steps that split a text by a pattern."""
    return (
        pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )


# The checkpoints that tests export, by the kind of their tokenizers.
BYTE_LEVEL_CHECKPOINTS = {f"byte_level_{name}": name for name in ("llama3", "qwen2", "gpt2", "smollm2")}
PROMPTS = {"llama3": chat_templates.LLAMA3, "qwen2": chat_templates.CHATML, "smollm2": chat_templates.CHATML}
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
KINDS = {
    "llama3": Kind(
        _split(LLAMA3),
        after=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<image>",
        ),
        begins=True,
        ignore_merges=True,
        settings={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
    "qwen2": Kind(
        _split(QWEN2),
        after=(*CHATML_TOKENS, "<image>"),
        is_nfc=True,
        settings={"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "gpt2": Kind(
        (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),),
        before=("<|endoftext|>",),
        after=("<image>",),
        settings={"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    ),
    "smollm2": Kind(
        (
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ),
        before=(*CHATML_TOKENS, "<repo_name>"),
        after=("<image>",),
        settings={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    ),
}


def tokenizer_of(kind: Kind, **bpe: Any) -> Tokenizer:
    """Return a tokenizer of a kind that is not trained yet, or one with the ``vocab`` and ``merges`` in ``bpe``."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind.ignore_merges, **bpe))
    if kind.is_nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(kind.steps)) if len(kind.steps) > 1 else kind.steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@cache
def tokenizer_json(name: str, *, vocab_size: int = 1200) -> str:
    """Return the ``tokenizer.json`` of a tokenizer of a kind, trained on ``TEXTS``."""
    kind = KINDS[name]
    tokenizer = tokenizer_of(kind)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(kind.before),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text in TEXTS for _ in range(4)], trainer)
    tokenizer.add_special_tokens(list(kind.after))
    if kind.begins:
        begin = (kind.before + kind.after)[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return tokenizer.to_str()


def write_tokenizer(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Write a tokenizer's files to a folder. Return the JSON, in which ``changes`` replace values."""
    document = {**json.loads(tokenizer_json(name)), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **KINDS[name].settings})
    )
    return document


def random_strings(count: int, *, seed: int = 0) -> Iterator[str]:
    """Yield strings of characters of several scripts, of words, and of any code points."""
    generator = random.Random(seed)
    words = [word + " " for text in TEXTS for word in text.split(" ")]
    for i in range(count):
        if i % 5 == 0:
            points = (generator.randrange(0x110000) for _ in range(generator.randrange(24)))
            yield "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        else:
            parts = []
            for _ in range(generator.randrange(7)):
                choice = generator.random()
                if choice < 0.3:
                    parts.append(generator.choice(WORDS))
                elif choice < 0.6:
                    parts += generator.choices(words, k=2)
                else:
                    parts += generator.choices(generator.choice(ALPHABETS), k=generator.randrange(8))
            yield "".join(parts)


def save_byte_level(folder: Path, kind: str) -> Path:
    """Save a random checkpoint with a Llama that has a tied head, and a tokenizer of a kind. Return ``folder``.

    Those of SmolLM2 and Llama 3 have transformers' processor, the others no more than a tokenizer.
    """
    document = json.loads(tokenizer_json(kind))
    ids = {**document["model"]["vocab"], **{token["content"]: token["id"] for token in document["added_tokens"]}}
    model = random_llava(
        Shape(
            text={
                "num_hidden_layers": 1,
                "vocab_size": ROWS,
                "num_key_value_heads": 2,
                "tie_word_embeddings": True,
                "eos_token_id": ids[KINDS[kind].settings["eos_token"]],
            },
            vision=FEW_LAYERS,
            whole={"tie_word_embeddings": True, "image_token_index": ids["<image>"]},
        ),
        seed=len(kind),
    )
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_tokenizer(folder, kind)
    if kind in PROMPTS:
        (folder / "chat_template.jinja").write_text(PROMPTS[kind])
    if kind in ("llama3", "smollm2"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        transformers.LlavaProcessor(
            transformers.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=PROMPTS[kind],
        ).save_pretrained(folder)
    return folder
