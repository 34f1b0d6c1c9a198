"""Exported programs: float ones equal transformers; XNNPACK runs what it should; the metadata is right."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.locate import locate
from llava_export.pte.golden import GoldenRecord
from llava_export.pte.plan import NUM_STAGES
from llava_export.pte.report import REASONS
from llava_export.pte.verify import compare, judge, read_manifest
from llava_runner import contract
from llava_runner.program import Program
from tests.integration.conftest import EIGHT_BITS

CONTEXT = 768


@pytest.mark.parametrize("name", ["tiny-llava", "odd_sizes", "siglip", "mistral", "phi3", "qwen2"])
@torch.no_grad()
def test_float_program_equals_transformers_in_prefill_and_decode(name, package_of):
    package = package_of(name, "fp32")
    theirs = LlavaForConditionalGeneration.from_pretrained(locate(package.model), dtype=torch.float32).eval()
    program = Program.open(package.program)
    golden = GoldenRecord.load(contract.golden_path(package.program))
    image_ids = torch.full((1, program.card.num_image_tokens), theirs.config.image_token_id)
    checkpoint = open_checkpoint(package.model)
    pixel_values = checkpoint.build_model(max_context_len=1).vision_encoder.pixel_values(golden.image)
    output = theirs(
        input_ids=torch.cat([golden.ids_before[None], image_ids, golden.ids_after[None]], dim=1),
        pixel_values=pixel_values,
        use_cache=True,
        logits_to_keep=1,
    )
    before, after = (program.embed(ids.tolist()) for ids in (golden.ids_before, golden.ids_after))
    rows, position = torch.cat([before, program.encode_image(golden.image.numpy()), after], dim=1), 0
    for token in [*golden.tokens.tolist(), 7, 11]:
        found = program.decode(rows, position=position)
        torch.testing.assert_close(found, output.logits[0, -1], rtol=1e-3, atol=1e-3)
        position += rows.shape[1]
        rows = program.embed([token])
        output = theirs(input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)


def test_image_of_any_size_up_to_the_models_gives_the_eager_features(package_of):
    package = package_of("odd_sizes", "fp32")
    program = Program.open(package.program)
    checkpoint = open_checkpoint(package.model)
    eager = checkpoint.build_model(max_context_len=1).vision_encoder
    checkpoint.weights.fill(eager, prefix="vision_encoder")
    random = np.random.default_rng(0)
    for height, width in ((56, 56), (2, 56), (56, 2), (2, 2), (55, 31), (28, 56)):
        image = random.integers(0, 256, (3, height, width), dtype=np.uint8)
        torch.testing.assert_close(program.encode_image(image), eager(torch.from_numpy(image)), rtol=1e-3, atol=1e-3)


def test_whole_context_can_be_used_and_no_more(package_of):
    program = Program.open(package_of("odd_sizes", "fp32").program)
    torch.manual_seed(0)
    rows = torch.randn(1, CONTEXT, program.card.hidden_size)
    whole = program.decode(rows, position=0)
    program.decode(rows[:, :-1], position=0)
    torch.testing.assert_close(program.decode(rows[:, -1:], position=CONTEXT - 1), whole, rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError):
        program.decode(rows[:, :1], position=CONTEXT)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ("deep", EIGHT_BITS),
        (
            "shallow",
            {"recipe": "8da4w", "algorithm": "hqq", "embedding_bits": 32, "vision": "fp32", "group_size": 32},
        ),
    ],
    ids=str,
)
def test_every_option_gives_a_program_within_its_thresholds(shape, options, package_of):
    package = package_of(shape, **options)
    manifest = read_manifest(package.program)
    assert manifest.card.recipe["embedding_bits"] == options["embedding_bits"]
    assert judge(compare(package.program, manifest), manifest) == []


def test_nothing_stays_outside_xnnpack_without_a_reason(tiny_package):
    assert {report.method for report in tiny_package.exported.reports} == set(contract.METHODS)
    for report in tiny_package.exported.reports:
        assert report.unexplained == []
    vision, text = (
        next(r for r in tiny_package.exported.reports if r.method == method)
        for method in (contract.VISION_ENCODER, contract.TEXT_DECODER)
    )
    assert set(vision.outside) == {"aten.sym_size", "aten._to_copy", "aten.constant_pad_nd"}
    layers = text.outside["llama.custom_sdpa"]
    assert text.outside["llama.update_cache"] == text.outside["aten.split_with_sizes_copy"] == 2 * layers
    assert {"aten.bmm", "aten._softmax", "aten.linear"} <= set(vision.delegated)


def test_one_partitioner_leaves_all_but_the_linears_outside(package_of):
    reports = package_of("deep", **EIGHT_BITS).exported.reports
    text = next(report for report in reports if report.method == contract.TEXT_DECODER)
    assert "aten.linear" not in text.outside
    assert {"aten.mul", "aten.rsqrt", "aten.bmm"} <= set(text.outside) - set(REASONS)


def test_metadata_is_what_executorch_runners_read(tiny_package):
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(tiny_package.program)
    assert set(contract.METHODS) <= set(program.method_names)

    def value(name):
        return list(program.load_method(name).execute([]))

    assert value("get_max_seq_len") == value("get_max_context_len") == [CONTEXT]
    assert value("get_bos_id") == [1] and value("get_eos_ids") == [2]
    assert value("use_kv_cache") == value("use_sdpa_with_kv_cache") == value("enable_dynamic_shape") == [True]
    (card,) = value("get_model_card")
    assert value("get_vocab_size") == [json.loads(card)["vocab_size"]]
    assert contract.ModelCard.from_json(card) == read_manifest(tiny_package.program).card


def test_stages_are_timed_and_none_is_missed(tiny_package):
    stages = tiny_package.stages
    assert len(stages.records) == NUM_STAGES
    assert all(record.seconds > 0 and record.peak_bytes > 0 for record in stages.records)
