"""A package's answer is compared with the float model's on the tokens that the float model chose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from llava_export.errors import DatasetError
from llava_export.evaluate import asking
from llava_export.evaluate.asking import Asker, Job, Token, common, compared, float_options, forced_logits
from llava_export.evaluate.items import Item
from llava_export.evaluate.ray_engine import ask_on_ray, from_any_folder
from llava_export.evaluate.reading import Prompt
from llava_export.evaluate.records import Result
from llava_runner.model import greedy

VOCAB, PROMPT, EOS = 11, 3, 10


class Remembering:
    """A model whose logits depend on every row that it has read, and on its seed. It overwrites what it reads again."""

    def __init__(self, seed: int, *, noise: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self._weights = torch.randn((64, VOCAB, VOCAB), generator=generator)
        self._weights += noise * torch.randn((64, VOCAB, VOCAB), generator=generator.manual_seed(seed))
        self._read = torch.zeros((64, VOCAB))

    def encode_image(self, pixels: np.ndarray) -> Tensor:
        raise AssertionError("there is no image")

    def embed(self, input_ids: list[int]) -> Tensor:
        return torch.eye(VOCAB)[input_ids][None]

    def decode(self, inputs_embeds: Tensor, *, position: int) -> Tensor:
        end = position + inputs_embeds.shape[1]
        self._read[position:end] = inputs_embeds[0]
        return torch.einsum("tv,tvw->w", self._read[:end], self._weights[:end])

    def verify(self, inputs_embeds: Tensor, *, position: int) -> Tensor:
        raise AssertionError("nothing is guessed")

    def after(self, ids: Sequence[int]) -> Tensor:
        """Return the logits after a sequence, which is read at once."""
        return self.decode(self.embed(list(ids)), position=0).clone()


def answer(model: Remembering, prompt: list[int]) -> list[Token]:
    return list(greedy(model, model.embed(prompt), max_tokens=12, eos_ids=[EOS]))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 3.0])
def test_the_model_reads_the_other_answer_in_place_of_its_own(noise):
    differing = lengths = 0
    for seed in range(20):
        ours, theirs = Remembering(seed + 1, noise=noise), Remembering(0, noise=0)
        prompt = torch.randint(EOS, (PROMPT,), generator=torch.Generator().manual_seed(seed)).tolist()
        own, said = answer(ours, prompt), answer(theirs, prompt)
        tokens = [token for token, _ in said]
        found = list(forced_logits(ours, own, tokens, start=PROMPT))
        expected = [ours.after(prompt + tokens[:i]) for i in range(len(tokens))]
        assert len(found) == len(expected)
        for it, right in zip(found, expected, strict=True):
            torch.testing.assert_close(it, right)
        result = compared(Result("", 0, len(own)), own, said, model=answered(ours, prompt), start=PROMPT)
        p, q = (torch.stack(it).double().log_softmax(-1) for it in ([logits for _, logits in said], expected))
        assert result.compared == len(tokens)
        assert result.agreed == int((p.argmax(-1) == q.argmax(-1)).sum())
        assert result.kl == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5)
        own_tokens = [token for token, _ in own]
        if own_tokens == tokens:
            assert result.first_difference is None
        else:
            assert result.first_difference == common(own_tokens, tokens) + 1
        differing += own_tokens != tokens
        lengths += len(own_tokens) != len(tokens)
    assert (differing == 0) == (noise == 0)
    assert noise < 1 or (differing > 10 and lengths > 2)


def answered(model: Remembering, prompt: list[int]) -> Remembering:
    """Return the model as it is after its own answer."""
    answer(model, prompt)
    return model


class Reading:
    """How a package with a context of some positions reads items: each as the prompt 1, 2, ... of some length."""

    def __init__(self, context: int, *, length: int) -> None:
        self.card = SimpleNamespace(max_context_len=context, eos_ids=[])
        self._length = length

    def positions(self, item: Item) -> int:
        return self._length

    def prompt(self, item: Item, *, folder: Path) -> Prompt:
        return Prompt([list(range(1, self._length + 1))], None)

    def text(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))


class Bounded(Remembering):
    """A model with a KV cache of some positions."""

    def __init__(self, seed: int, context: int) -> None:
        super().__init__(seed, noise=3.0)
        self.card = SimpleNamespace(max_context_len=context)

    def decode(self, inputs_embeds: Tensor, *, position: int) -> Tensor:
        if position + inputs_embeds.shape[1] > self.card.max_context_len:
            raise RuntimeError("beyond the KV cache")
        return super().decode(inputs_embeds, position=position)


@pytest.mark.parametrize(
    ("contexts", "lengths", "most", "tokens"),
    [
        ((20, 9), (4, 4), 64, 5),
        ((9, 20), (4, 4), 64, 5),
        ((20, 9), (4, 6), 64, 3),  # of other prompts: the float model is asked twice
        ((20, 9), (4, 8), 64, 1),
        ((12, 9), (9, 4), 64, 3),
        ((20, 9), (4, 4), 2, 2),
        ((9,), (4,), 64, 5),
    ],
)
def test_packages_of_other_contexts_answer_at_the_same_length(contexts, lengths, most, tokens, monkeypatch):
    programs = {Path(f"{i}.pte"): i for i in range(len(contexts))}
    monkeypatch.setattr(asking.Program, "open", lambda path, **_: Bounded(programs[path] + 1, contexts[programs[path]]))
    monkeypatch.setattr(
        asking, "open_reader", lambda path: Reading(contexts[programs[path]], length=lengths[programs[path]])
    )
    monkeypatch.setattr(asking, "open_checkpoint", lambda name: name)
    monkeypatch.setattr(asking, "float_model", lambda name, *, max_context_len: Bounded(9, max_context_len))
    job = Job(tuple(programs), Path(), metric="exact", max_new_tokens=most, against="checkpoint")
    record = Asker(job).ask(Item("1", "", "?", ("x",)))
    assert [(it.tokens, it.compared) for it in record.results] == [(tokens, tokens)] * len(contexts)


@pytest.mark.parametrize(
    ("a", "b", "count"), [([], [], 0), ([1], [], 0), ([1, 2], [1, 3], 1), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2)]
)
def test_what_answers_have_in_common(a, b, count):
    assert common(a, b) == common(b, a) == count


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "there is no Ray cluster at 127.0.0.1:1: .*refused"),
        ("127.0.0.1:70000", "there is no Ray cluster at 127.0.0.1:70000"),
        ("no host.invalid:6379", "there is no Ray cluster at no host.invalid:6379"),
        ("auto", "--address: 'auto' is not HOST:PORT"),
        ("127.0.0.1:", "--address: '127.0.0.1:' is not HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_at_once(address, message, tmp_path):
    job = Job((), tmp_path, metric="exact", max_new_tokens=1)
    with pytest.raises(DatasetError, match=message):
        next(ask_on_ray(job, [Item("1", "", "?", ("",))], workers=1, address=address, on_lost=print))


def test_checkpoints_have_one_spelling(tmp_path, monkeypatch):
    """A run that goes on may name a checkpoint otherwise, and workers on a cluster have another current folder."""
    (tmp_path / "ck/tower").mkdir(parents=True)
    (tmp_path / "link").symlink_to("ck")
    (tmp_path / "tiny-llava").mkdir()  # the built-in one comes first
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "ck")
    for name in ("../ck", "./", ".", str(tmp_path / "ck"), "../link", "~/ck", "tower/.."):
        parts = {"vision_tower": f"{name}/tower", "projector": None}
        job = Job((), Path("tower"), "exact", 1, against=name, parts=parts)
        expected = {"vision_tower": str(tmp_path / "ck/tower"), "projector": None}
        assert float_options(job) == {"against": str(tmp_path / "ck"), **expected}
        sent = from_any_folder(job)
        assert (sent.against, sent.parts, sent.folder) == (str(tmp_path / "ck"), expected, tmp_path / "ck/tower")
    monkeypatch.chdir(tmp_path)
    for no_path in ("tiny-llava", "llava-hf/llava-1.5-7b-hf", None):
        assert float_options(Job((), Path(), "exact", 1, against=no_path)) == {"against": no_path}
