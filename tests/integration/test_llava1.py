"""A program of LLaVA-1: it reads the tokens around an image, and both runners answer alike."""

from __future__ import annotations

from llava_export.pte.golden import GoldenRecord
from llava_export.pte.verify import compare, judge, read_manifest
from llava_runner import contract
from tests.integration.parity import assert_same_answers


def test_a_four_bit_package_is_verified(package_of):
    package = package_of("llava_1")
    manifest = read_manifest(package.program)
    assert (manifest.card.prompt.image_start, manifest.card.prompt.image_end) == ("<im_start>", "<im_end>")
    golden = GoldenRecord.load(contract.golden_path(package.program))
    assert (golden.ids_before[-1], golden.ids_after[0]) == (513, 514)
    assert judge(compare(package.program, manifest), manifest) == []


def test_both_runners_answer_alike(package_of, llava_main, tmp_path):
    package = package_of("llava_1", "fp32", golden=False)
    assert_same_answers([llava_main], package.program, scenes=1, folder=tmp_path, max_new_tokens=6)
