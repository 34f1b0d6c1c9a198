"""Perplexity, KL and top-1 on a text, against a model computed in another way; and texts that cannot be read."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.cli import evaluate
from llava_export.corpus import Corpus, open_corpus
from llava_export.errors import CorpusError, RecipeError
from llava_export.evaluate.text import Estimate, TextFigures, _exp, evaluate_recipe, t_quantile
from llava_export.recipe import RECIPES
from llava_export.streams import DecoderBlocks, Stream
from llava_runner.errors import UserError
from tests.commands import llava_here

LENGTH = 24
TINY = str(CHECKPOINTS["tiny-llava"])


@pytest.fixture(params=["grouped_query", "tied_head", "biases"])
def checkpoint(request, checkpoint_of) -> Checkpoint:
    return open_checkpoint(str(checkpoint_of(request.param)))


def random_windows(count: int, *, vocab_size: int, length: int = LENGTH) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocab_size, (length,), generator=generator) for _ in range(count)]


@torch.no_grad()
def plain_logits(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits ``[T, V]`` of the whole float model, which reads one token at a time with its KV cache."""
    model = checkpoint.build_model(max_context_len=len(ids))
    checkpoint.weights.fill(model, prefix="")
    rows = model.token_embedding(ids[None])
    return torch.cat([model.text_decoder(rows[:, i : i + 1], torch.tensor([i]))[0] for i in range(len(ids))])


def test_streamed_logits_are_those_of_the_whole_model(checkpoint):
    sequences = random_windows(2, vocab_size=checkpoint.config.text.vocab_size)
    sequences[1] = sequences[1][:7]  # lengths may differ
    blocks = DecoderBlocks(checkpoint, max_len=LENGTH)
    stream = Stream(blocks.embed(sequences), decoder=blocks.decoder)
    for fqn in blocks.layers:
        with blocks.loaded(fqn) as layer:
            stream.advance(layer)
        assert next(layer.parameters()).is_meta  # its memory is free again
    with blocks.head() as head:
        for rows, ids in zip(stream.rows, sequences, strict=True):
            torch.testing.assert_close(head.logits(rows), plain_logits(checkpoint, ids), rtol=1e-4, atol=1e-4)


def test_figures_are_those_of_the_definitions(checkpoint_of):
    """Perplexity, KL and top-1 of a text, computed from all logits at once."""
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    twin = open_checkpoint(str(checkpoint_of("plain_twin")))  # so that the models differ much
    windows = random_windows(3, vocab_size=checkpoint.config.text.vocab_size)
    from llava_export.evaluate.text import _compared

    logits = [[plain_logits(it, ids)[:-1] for ids in windows] for it in (checkpoint, twin)]
    readers = [lambda window, start, end, mine=mine: mine[window][start:end] for mine in logits]
    found = _compared(readers[0], readers[1], windows, device="cpu", on_step=lambda name: None)
    p, q = (torch.cat(it).double().log_softmax(-1) for it in logits)
    targets = torch.cat([ids[1:] for ids in windows])
    assert found.float_perplexity.value == pytest.approx(math.exp(F.nll_loss(p, targets)), rel=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(F.nll_loss(q, targets)), rel=1e-5)
    assert found.kl.value == pytest.approx(F.kl_div(q, p, log_target=True, reduction="batchmean").item(), rel=1e-5)
    assert found.top1.value == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())


def test_positions_are_compared_in_any_number_at_once(checkpoint_of, monkeypatch):
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    windows = random_windows(2, vocab_size=checkpoint.config.text.vocab_size)
    recipe = RECIPES["8da8w"]
    found = asdict(evaluate_recipe(checkpoint, recipe, windows))
    monkeypatch.setattr("llava_export.evaluate.text.POSITIONS_AT_ONCE", 5)
    in_pieces = asdict(evaluate_recipe(checkpoint, recipe, windows))
    for name in ("kl", "perplexity", "top1"):
        assert in_pieces[name]["value"] == pytest.approx(found[name]["value"], rel=1e-4)


def test_a_recipe_that_quantizes_nothing_changes_nothing(checkpoint_of):
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    windows = random_windows(2, vocab_size=checkpoint.config.text.vocab_size)
    found = evaluate_recipe(checkpoint, RECIPES["fp32"], windows)
    assert found.kl.value == 0 and found.top1.value == 1 and found.perplexity == found.float_perplexity


def test_coarser_recipes_are_farther_from_the_float_model(checkpoint_of):
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    windows = random_windows(2, vocab_size=checkpoint.config.text.vocab_size)
    coarser = [
        RECIPES["fp32"].with_changes(kv_cache="bf16"),
        RECIPES["8da8w"],
        RECIPES["8da4w"].with_changes(group_size=32),
    ]
    kls = [evaluate_recipe(checkpoint, recipe, windows).kl.value for recipe in coarser]
    assert 0 < kls[0] < kls[1] < kls[2]


def test_a_recipe_that_does_not_fit_is_told_before_anything_is_read(checkpoint_of):
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    windows = random_windows(1, vocab_size=checkpoint.config.text.vocab_size)
    with pytest.raises(RecipeError, match="group size 160 does not divide"):
        evaluate_recipe(checkpoint, RECIPES["8da4w"].with_changes(group_size=160), windows, on_step=pytest.fail)


@pytest.mark.parametrize(
    ("degrees", "table"), [(1, 12.706), (2, 4.303), (3, 3.182), (7, 2.365), (15, 2.131), (1000, 1.962)]
)
def test_students_quantiles_are_those_of_the_tables(degrees, table):
    assert t_quantile(degrees) == pytest.approx(table, rel=2e-3)


def test_an_interval_has_the_width_of_the_formula():
    found = Estimate.mean([1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), rel=1e-3)
    assert Estimate.mean([2.0]) == Estimate(2.0, None, None)


def test_windows_are_spread_over_the_text_and_do_not_overlap():
    corpus = Corpus(torch.arange(103), bos_id=None)
    assert [it.tolist() for it in corpus.windows(3, length=4)] == [[0, 1, 2, 3], [34, 35, 36, 37], [68, 69, 70, 71]]
    many = corpus.windows(1000, length=10)
    assert len(many) == 10 and len(set(torch.cat(many).tolist())) == 100


def test_windows_of_a_text_begin_with_its_first_token():
    corpus = Corpus(torch.arange(100, 120), bos_id=1)
    assert [it.tolist() for it in corpus.windows(2, length=3)] == [[1, 100, 101], [1, 110, 111]]


def test_a_text_is_tokenized_as_by_the_checkpoint(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(TINY)
    text = "What is in the image?\nA red circle.\n\nHow many things are there? Three.\n" * 40
    path = tmp_path / "text"
    path.write_text(text, encoding="utf-8")
    whole = open_corpus(path, checkpoint)
    assert whole.bos_id == checkpoint.config.bos_id and whole.bos_id not in whole.ids
    tokenizer = checkpoint.tokenizer.chat_tokenizer(bos_id=whole.bos_id)

    def read_back(corpus: Corpus) -> str:
        return b"".join(map(tokenizer.decode_piece, corpus.ids.tolist())).decode()

    assert read_back(whole).strip() == text.strip()
    monkeypatch.setattr("llava_export.corpus.PIECE_OF_TEXT", 100)
    in_pieces = read_back(open_corpus(path, checkpoint))
    assert in_pieces != read_back(whole)  # a piece may begin with a space of its own
    assert in_pieces.replace(" ", "") == text.replace(" ", "")


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([3, 512, 600]), "has the token id 600; the model's vocabulary has the ids 0 to 575"),
        (np.array([3, -1]), "has the token id -1"),
        (np.array([1 << 63], dtype=np.uint64), "has the token id 9223372036854775807"),
        (np.array([1.0, 2.0]), "has float64 values in 1 dimensions; token ids are whole numbers"),
        (np.zeros((2, 3), dtype=np.int32), "has int32 values in 2 dimensions"),
        (np.zeros(0, dtype=np.int32), "has no tokens"),
        (np.array([7]), "has one token, and no next one"),
        (np.array(["a", None], dtype=object), "is no array of numbers"),
        (np.array([True, False]), "has bool values"),
    ],
    ids=str,
)
def test_arrays_that_are_no_token_ids_are_refused(array, message, checkpoint_of, tmp_path):
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    with pytest.raises(CorpusError, match=message):
        open_corpus(saved(tmp_path / "ids.npy", array), checkpoint)


def with_header(header: bytes) -> bytes:
    """Return a file of numpy's of which the header is damaged."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


DAMAGED = {
    "empty": b"",
    "beginning": b"\x93NUMPY",
    "other": b"no array",
    "open brace": with_header(b"{'descr': '<i4', 'fortran_order': False, 'shape': (20,)"),
    "indented": with_header(b"{}\n  1\n 2"),
    "large shape": with_header(b"{'descr': '<i4', 'fortran_order': False, 'shape': (%d,)}" % 10**30),
    "nested": with_header(b"(" * 5000),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_arrays_are_refused(content, checkpoint_of, tmp_path):
    path = tmp_path / "ids.npy"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="is no array of numbers that numpy saved"):
        open_corpus(path, open_checkpoint(str(checkpoint_of("plain"))))


def test_token_ids_may_be_of_any_whole_type(checkpoint_of, tmp_path):
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    for dtype in ("uint16", ">i4", "int64"):
        corpus = open_corpus(saved(tmp_path / "ids.npy", np.array([5, 571], dtype=dtype)), checkpoint)
        assert corpus.ids.tolist() == [5, 571] and corpus.bos_id is None


def test_the_command_prints_and_writes_the_figures(tmp_path, capsys):
    text, written = tmp_path / "text.txt", tmp_path / "figures.json"
    text.write_text("The image shows a blue circle. " * 30)
    flags = [
        "--model",
        TINY,
        "--text",
        text,
        "--windows",
        2,
        "--window-len",
        16,
        "--recipe",
        "8da8w",
        "--json",
        written,
    ]
    evaluate.run(evaluate.build_parser().parse_args(list(map(str, flags))))
    printed = " ".join(capsys.readouterr().out.split())
    figures = json.loads(written.read_text())
    assert f"2 windows of 16 tokens of {text}" in printed and "same top-1" in printed
    assert figures["windows"] == 2 and figures["recipe"]["name"] == "8da8w"
    assert f"KL, in nats {figures['kl']['value']:.4f}" in printed


def test_figures_beyond_any_float_are_null_in_json():
    large = Estimate(705.0, 3.0, 1e4)
    figures = TextFigures(1, 16, Estimate(2.0, None, None), large.map(_exp), Estimate(math.nan, -math.inf, 1.0), large)
    written = json.loads(json.dumps(figures.to_dict(), allow_nan=False))
    assert written["perplexity"] == {"value": None, "low": math.exp(3), "high": None}
    assert written["kl"] == {"value": None, "low": None, "high": 1.0}
    assert written["float_perplexity"] == {"value": 2.0, "low": None, "high": None}
    assert (written["windows"], written["window_len"], written["top1"]) == (1, 16, asdict(large))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name a package and --against its checkpoint, or --model"),
        (["package"], "--against is missing"),
        (["package", "--model", TINY], "name either a package or --model"),
        (["--model", TINY, "--against", TINY], "--against is for packages"),
        (["package", "--against", TINY, "--group-size", "32"], "--group-size: for --model alone"),
        (["--model", TINY, "--text", "missing.txt"], "missing.txt does not exist"),
        (["--model", TINY, "--text", "."], ". is not a file"),
        (["--model", TINY, "--text", "latin1.txt"], "latin1.txt is not UTF-8 text at byte 2"),
        (["--model", TINY, "--text", "empty.txt"], "empty.txt has no tokens"),
        (
            ["--model", TINY, "--window-len", "100"],
            "too short for a window of 100 tokens: it has 4; a shorter",
        ),
        (["--model", TINY, "--window-len", "1"], "a window of 1 token has no next one"),
        (["--model", TINY, "--text", "long.npy", "--window-len", "5000"], "longer than the 2048 positions"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_are_told(flags, message, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("A red circle.")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin1.txt").write_bytes("Grün".encode("latin-1"))
    np.save(tmp_path / "long.npy", np.ones(6000, dtype=np.int32))
    monkeypatch.chdir(tmp_path)
    flags = [*flags, *([] if "--text" in flags else ["--text", "text.txt"])]
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        evaluate.run(evaluate.build_parser().parse_args(flags))
    assert len(raised.value.lines) == 1


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = llava_here("evaluate", "--model", TINY, "--text", tmp_path)
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path} is not a file\n")
