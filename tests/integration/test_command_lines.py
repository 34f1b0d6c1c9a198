"""Export, verify and run as a user types them, on a checkpoint that transformers saved and no other test uses."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import CLIPImageProcessorPil, LlamaTokenizer, LlavaProcessor

from llava_export.pte.options import Options
from llava_export.pte.plan import plan
from llava_export.staging import RECORD
from llava_runner import contract
from tests.checkpoints import FEW_LAYERS, TINY_LLAVA, Shape, random_llava
from tests.commands import script


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Return the folder of a random checkpoint in several shards, with a tokenizer and image statistics of its own."""
    folder = tmp_path_factory.mktemp("unseen") / "checkpoint"
    random_llava(Shape(vision=FEW_LAYERS), seed=7).half().save_pretrained(folder, max_shard_size="1MB")
    tokenizer = LlamaTokenizer.from_pretrained(TINY_LLAVA)
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, resample=1, image_mean=[0.5, 0.4, 0.3]
    )
    LlavaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default"
    ).save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)  # transformers 5 writes tokenizer.json
    return folder


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m`` with a module and its arguments in a folder. Return its exit code and what it printed."""
    return subprocess.run([sys.executable, "-m", *map(str, command)], cwd=folder, capture_output=True, text=True)


def test_exported_package_is_verified_and_answers(checkpoint, tmp_path):
    done = run(
        tmp_path,
        "llava_export.export",
        "--pte-name",
        "llava.pte",
        "--with-artifacts",
        "--model",
        checkpoint,
        "--report",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {path.name for path in tmp_path.iterdir() if path.name != RECORD} == {
        "llava.pte",
        "llava.json",
        "llava.golden",
        *(set(contract.ARTIFACTS) - {contract.TOKENIZER_JSON}),
    }
    for shown in ("lower template", "peak memory", "text_decoder", "llama.custom_sdpa", "llava verify llava.pte"):
        assert shown in done.stdout
    needed = plan(str(checkpoint), Options()).estimate
    assert needed.program == pytest.approx((tmp_path / "llava.pte").stat().st_size, rel=0.15)
    (total,) = re.findall(r"^total .* ([\d.]+) (MiB|GiB)$", done.stdout, re.MULTILINE)
    assert needed.memory == pytest.approx(float(total[0]) * {"MiB": 2**20, "GiB": 2**30}[total[1]], rel=0.15)
    card = contract.Manifest.from_json((tmp_path / "llava.json").read_text()).card
    assert card.image_mean == (0.5, 0.4, 0.3)
    assert (card.image_aspect_ratio, card.image_resize, card.image_resample) == ("crop", 64, "lanczos")

    done = script("test_pte", "llava.pte", "image.png", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    flags = ["--model_path=llava.pte", "--tokenizer_path=tokenizer.bin", "--image_path=image.pt"]
    done = run(tmp_path, "llava_runner", *flags, "--prompt=ASSISTANT:", "--seq_len=768", "--temperature=0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "prompt eval time" in done.stderr


def test_a_budget_is_kept_and_without_a_golden_record_nothing_can_be_verified(checkpoint, tmp_path):
    options = Options()
    ends = [plan(str(checkpoint), replace(options, budget=each)).estimate.program for each in (None, 10**9)]
    budget = sum(ends) // 2
    command = ["llava_export.export", "--pte-name", "small.pte", "--model", checkpoint, "--no-golden"]
    done = run(tmp_path, *command, "--budget", str(budget), "--sensitivity-plot", "linears.png")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir() if path.name != RECORD} == {
        "small.pte",
        "small.json",
        "linears.png",
    }
    assert 0.9 * budget < (tmp_path / "small.pte").stat().st_size <= budget
    (text,) = re.findall("^budget: 8 bits for (.*)", done.stdout, re.MULTILINE)
    card = contract.Manifest.from_json((tmp_path / "small.json").read_text()).card
    exceptions = card.recipe["exceptions"]
    assert isinstance(exceptions, dict) and set(exceptions.values()) == {"8da8w"}
    assert sum(map(int, re.findall(r"(\d+) of 2", text))) == len(exceptions)
    assert "float answer" not in done.stdout and "verify it" not in done.stdout
    done = script("test_pte", "small.pte", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: small.pte was exported with --no-golden, so there is nothing to compare it with\n"
