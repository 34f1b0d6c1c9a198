import struct
import subprocess
import sys

import pytest
import torch

from llava_runner.contract import MODEL_CARD, VISION_ENCODER
from llava_runner.errors import PackageError
from llava_runner.program import Program
from tests.runner.fake_program import FakeProgram, make_card
from tests.runner.tiny_program import build_pte


@pytest.fixture(scope="module")
def program(tiny_pte):
    return Program.open(tiny_pte)


@pytest.fixture
def fake(program):
    return FakeProgram(program.card)


def test_card_comes_back_from_the_program(program):
    assert program.card == make_card(vocab_size=420, max_seq_len=8, logits_to_keep=4)


@pytest.mark.parametrize("size", [(2, 2), (28, 28), (5, 28), (17, 3)])
def test_encode_image_equals_the_module(program, fake, size):
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    features = program.encode_image(pixels.numpy())
    assert features.shape == (1, 4, 8)
    torch.testing.assert_close(features, fake.encode_image(pixels.numpy()))


def test_encode_image_takes_views(program):
    pixels = torch.randint(0, 256, (9, 7, 3), dtype=torch.uint8).numpy()
    turned = pixels.transpose(2, 0, 1)
    assert torch.equal(program.encode_image(turned), program.encode_image(turned.copy()))


@pytest.mark.parametrize("length", [1, 8, 9, 20])
def test_embed_takes_more_ids_than_one_call_does(program, fake, length):
    ids = torch.randint(0, 420, (length,)).tolist()
    torch.testing.assert_close(program.embed(ids), fake.embed(ids))


@pytest.mark.parametrize("length", [1, 8, 9, 20])
def test_decode_takes_more_rows_than_one_call_does(program, fake, length):
    rows = torch.randn(1, length, 8)
    logits = program.decode(rows, position=0)
    assert logits.shape == (420,)
    torch.testing.assert_close(logits, fake.decode(rows, position=0))


def test_decode_continues_where_it_is_told_and_keeps_what_it_returned(program, fake):
    rows = torch.randn(1, 10, 8)
    first = program.decode(rows[:, :7], position=0)
    kept = first.clone()
    torch.testing.assert_close(program.decode(rows[:, 7:], position=7), fake.decode(rows, position=0))
    assert torch.equal(first, kept)


def test_verify_gives_the_logits_after_each_row(program, fake):
    rows = torch.randn(1, 11, 8)
    program.decode(rows[:, :7], position=0)
    fake.decode(rows[:, :7], position=0)
    found = program.verify(rows[:, 7:], position=7)
    torch.testing.assert_close(found, fake.verify(rows[:, 7:], position=7))
    for end in range(8, 12):
        torch.testing.assert_close(found[end - 8], fake.decode(rows[:, :end], position=0))
    torch.testing.assert_close(program.verify(rows[:, :1], position=7)[0], fake.decode(rows[:, :1], position=7))


@pytest.mark.parametrize("fraction", [0, 0.001, 0.004, 0.006, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_files(tiny_pte, tmp_path, fraction):
    content = tiny_pte.read_bytes()
    path = tmp_path / "cut.pte"
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(PackageError, match=r"cut\.pte is (truncated: \d+ of \d+ bytes|not an ExecuTorch program)"):
        Program.open(path)


def test_other_files(tmp_path):
    path = tmp_path / "text.pte"
    path.write_text("A text long enough to be taken for the head of a program by its length alone.")
    with pytest.raises(PackageError, match=r"text\.pte is not an ExecuTorch program"):
        Program.open(path)
    with pytest.raises(PackageError, match="is not a file"):
        Program.open(tmp_path)
    with pytest.raises(PackageError, match="does not exist"):
        Program.open(tmp_path / "nowhere.pte")


def test_damaged_flatbuffer(tiny_pte, tmp_path):
    content = bytearray(tiny_pte.read_bytes())
    (root,) = struct.unpack_from("<I", content)
    content[root : root + 64] = b"\xff" * 64
    path = tmp_path / "damaged.pte"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=r"damaged\.pte cannot be loaded"):
        Program.open(path)


@pytest.mark.parametrize("missing", [VISION_ENCODER, MODEL_CARD])
def test_program_of_another_kind(tmp_path, missing):
    path = tmp_path / "other.pte"
    path.write_bytes(build_pte(make_card(vocab_size=420), leave_out=missing))
    with pytest.raises(PackageError, match=f"program of another kind: it lacks {missing}"):
        Program.open(path)


def test_card_of_another_schema(tmp_path):
    path = tmp_path / "later.pte"
    path.write_bytes(build_pte(make_card(vocab_size=420), card_json='{"schema": 99}'))
    with pytest.raises(PackageError, match=r"later\.pte cannot be used: the model card has schema 99"):
        Program.open(path)


def test_opening_a_program_leaves_the_exporters_libraries_out_and_stderr_empty(tiny_pte):
    code = """
import sys
from llava_runner.program import Program
program = Program.open(sys.argv[1])
program.decode(program.embed([1, 2, 3]), position=0)
print([name for name in ("executorch.exir", "torchao", "transformers", "llava_export") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code, tiny_pte], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert result.stderr == ""
