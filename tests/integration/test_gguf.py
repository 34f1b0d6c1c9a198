"""GGUF files: they hold what the checkpoint holds, under llama.cpp's names, and llama.cpp answers with them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import jinja2
import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.errors import ExportError
from llava_export.families import MOBILEVLM
from llava_export.families.language_models import LANGUAGE_MODELS
from llava_export.gguf import export as gguf_export
from llava_export.gguf.export import export_gguf
from llava_export.gguf.next_tokens import next_tokens
from llava_export.gguf.options import MMPROJ_TYPES, TEXT_QUANTIZATIONS
from llava_export.gguf.text import chat_template
from llava_export.gguf.types import text_type, vision_type
from llava_export.gguf.verify import check
from llava_export.split import split
from llava_export.stages import Stages
from llava_export.staging import RECORD
from llava_runner.prompt import chunk_text, prompt_chunks, question_chunks
from llava_runner.tokenizer_file import load_tokenizer
from tests.commands import llava, llava_here, script
from tests.marks import needs_llama_cpp
from training import questions


def export(model: object, folder: Path, quantization: str = "f16", mmproj_type: str = "f16") -> Path:
    """Write both files of a checkpoint to ``folder``. Return ``folder``."""
    checkpoint = open_checkpoint(str(model))
    export_gguf(
        checkpoint,
        quantization=quantization,
        mmproj_type=mmproj_type,
        prompt=find_prompt(checkpoint),
        output_dir=folder,
        overwrite=True,
        stages=Stages(),
    )
    return folder


def failures(folder: Path) -> list[str]:
    """Return what the verification of a folder finds wrong."""
    return [failure for comparison in check(folder) for failure in comparison.failures]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function ``exported(name)``: it returns the folder of a built-in model's float16 files, made once."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = export(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return make


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_float_files_pass(name, exported):
    assert failures(exported(name)) == []


def test_both_commands_as_a_user_types_them(tmp_path):
    done = llava("gguf", "--model", "tiny-mobilevlm", "--output-dir", tmp_path)
    assert done.returncode == 0 and "verify it:  llava verify" in done.stdout, done.stderr
    assert "24 by 24 patches" in done.stdout + done.stderr
    names = {path.name for path in tmp_path.iterdir() if path.name != RECORD}
    assert names == {"ggml-model-q4_k_m.gguf", "mmproj-model-f16.gguf"}
    done = script("test_gguf", tmp_path)
    assert done.returncode == 0 and "PASS" in done.stdout and "Q4_K" in done.stdout, done.stderr


@pytest.mark.parametrize("quantization", [name for name in TEXT_QUANTIZATIONS if name != "f16"])
def test_quantized_files_pass(quantization, tmp_path):
    mmproj = "q8_0" if quantization == "q4_0" else "f32"
    folder = export("tiny-llava", tmp_path, quantization, mmproj)
    names = {path.name for path in folder.iterdir() if path.name != RECORD}
    assert names == {f"ggml-model-{quantization}.gguf", f"mmproj-model-{mmproj}.gguf"}
    assert failures(folder) == []


@pytest.mark.parametrize(
    "shape",
    ["grouped_query", "head_dim_80", "padded_vocabulary", "tied_head", "mobilevlm", "siglip_several_feature_layers"],
)
def test_every_shape_passes(shape, checkpoint_of, tmp_path):
    assert failures(export(checkpoint_of(shape), tmp_path)) == []


def test_queries_and_keys_are_in_llama_cpps_order(exported):
    """Compare with llama.cpp's own conversion, which interleaves the two halves of each head's rows."""
    reader = GGUFReader(exported("tiny-llava") / "ggml-model-f16.gguf")
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    checkpoint = open_checkpoint("tiny-llava")
    tensors = {tensor.fqn: tensor for tensor in checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1))}
    weight = checkpoint.weights.read(tensors["text_decoder.layers.1.self_attn.q_proj.weight"]).numpy()
    expected = np.concatenate(
        [np.stack((head[:32], head[32:]), axis=1).reshape(64, -1) for head in np.split(weight, 4)]
    )
    assert np.array_equal(stored["blk.1.attn_q.weight"], expected)


def test_metadata_is_what_llama_cpp_reads(exported):
    folder = exported("tiny-mobilevlm")
    text, vision = (
        {name: field.contents() for name, field in GGUFReader(path).fields.items()}
        for path in sorted(folder.glob("*.gguf"))
    )
    assert text["general.architecture"] == "llama" and vision["general.architecture"] == "clip"
    assert (text["llama.vocab_size"], text["llama.block_count"], text["llama.attention.head_count"]) == (512, 4, 4)
    assert text["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    tokenizer = load_tokenizer(CHECKPOINTS["tiny-mobilevlm"] / "tokenizer.model")
    assert len(text["tokenizer.ggml.tokens"]) == tokenizer.vocab_size == 512
    assert (text["tokenizer.ggml.bos_token_id"], text["tokenizer.ggml.eos_token_id"]) == (1, 2)
    # Five of six layers are read. llama.cpp would leave out one more if feature_layer did not say so.
    assert (vision["clip.vision.block_count"], vision["clip.vision.feature_layer"]) == (5, [5])
    assert vision["clip.projector_type"] == "ldp" and not vision["clip.use_gelu"] and not vision["clip.use_silu"]


def test_siglip_has_the_names_and_keys_of_llama_cpps_converter(checkpoint_of, tmp_path):
    """Compare with the tensor names of the library gguf, and with what llama.cpp's legacy converter leaves out."""
    reader = GGUFReader(export(checkpoint_of("siglip"), tmp_path) / "mmproj-model-f16.gguf")
    names = get_tensor_name_map(MODEL_ARCH.MMPROJ, 4)
    theirs = LlavaForConditionalGeneration.from_pretrained(checkpoint_of("siglip"))
    tower = "model.vision_tower."
    published = {
        key.replace(tower, "vision_tower.vision_model."): tensor for key, tensor in theirs.state_dict().items()
    }
    expected = {
        names.get_name(key, (".weight", ".bias")): tuple(tensor.shape)
        for key, tensor in published.items()
        if key.startswith("vision_tower.") and "post_layernorm" not in key
    }
    stored = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    assert expected.items() <= stored.items() and len(stored) == len(expected) + 4
    assert "v.patch_embd.bias" in stored and stored["v.position_embd.weight"] == (16, 288)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert (keys["clip.projector_type"], keys["clip.use_gelu"], keys["clip.use_silu"]) == ("mlp", True, False)
    assert (keys["clip.vision.feature_layer"], keys["clip.vision.block_count"]) == ([4], 4)
    assert (keys["clip.vision.image_size"], keys["clip.vision.image_mean"]) == (62, [0.5] * 3)
    assert keys["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-6)


def test_ids_beyond_the_tokenizer_are_unused(checkpoint_of, tmp_path):
    folder = export(checkpoint_of("padded_vocabulary"), tmp_path)
    fields = GGUFReader(folder / "ggml-model-f16.gguf").fields
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 640
    assert set(fields["tokenizer.ggml.token_type"].contents()[512:]) == {5}


def test_types_are_those_of_the_published_7b_files():
    """Compare with the counts that llama.cpp prints when it loads a published Llama-2-7B of these types."""
    parts = {"attn_q": 4096, "attn_k": 4096, "attn_v": 4096, "attn_output": 4096, "ffn_gate": 4096, "ffn_up": 4096}
    columns = {
        f"blk.{i}.{part}.weight": size for i in range(32) for part, size in (parts | {"ffn_down": 11008}).items()
    }
    columns |= {"token_embd.weight": 4096, "output.weight": 4096}

    def types(quantization: str) -> Counter[str]:
        kinds = (text_type(n, (1, c), quantization=quantization, num_layers=32) for n, c in columns.items())
        return Counter(kind.name for kind in kinds)

    assert types("q4_k_m") == {"Q4_K": 193, "Q6_K": 33}
    assert types("q5_k_m") == {"Q5_K": 193, "Q6_K": 33}
    assert types("q4_k_s") == {"Q4_K": 217, "Q5_K": 8, "Q6_K": 1}
    assert types("q4_0") == {"Q4_0": 225, "Q6_K": 1}


def test_rows_that_blocks_of_256_do_not_divide_get_the_next_finer_type():
    """The types by llama.cpp's rules of a model that is 576 wide, with 30 layers and a head tied to the embedding."""

    def kind(name: str, quantization: str) -> str:
        columns = 1536 if "ffn_down" in name else 576
        return text_type(name, (1, columns), quantization=quantization, num_layers=30, tied=True).name

    names = ("token_embd.weight", "blk.0.attn_v.weight", "blk.3.attn_v.weight", "blk.3.attn_q.weight")
    downs = ("blk.0.ffn_down.weight", "blk.3.ffn_down.weight")
    found = {q: [kind(name, q) for name in (*names, *downs)] for q in ("q4_0", "q4_k_m", "q5_k_m")}
    assert found == {
        "q4_0": ["Q8_0", "Q4_0", "Q4_0", "Q4_0", "Q4_0", "Q4_0"],
        "q4_k_m": ["Q8_0", "Q8_0", "Q5_0", "Q5_0", "Q6_K", "Q4_K"],
        "q5_k_m": ["Q8_0", "Q8_0", "Q5_1", "Q5_1", "Q6_K", "Q5_K"],
    }


def test_a_tied_embedding_has_the_type_of_the_head(checkpoint_of, tmp_path):
    kinds = {}
    for shape in ("plain", "tied_head"):
        folder = export(checkpoint_of(shape), tmp_path / shape, "q4_k_m")
        assert failures(folder) == []
        tensors = GGUFReader(folder / "ggml-model-q4_k_m.gguf").tensors
        kinds[shape] = {
            it.name: it.tensor_type.name for it in tensors if it.name.split(".")[0] in ("token_embd", "output")
        }
    assert kinds["plain"] == {"token_embd.weight": "Q4_K", "output.weight": "Q6_K"}
    assert kinds["tied_head"] == {"token_embd.weight": "Q6_K"}


def test_the_command_line_offers_the_types_there_are():
    texts = [text_type("blk.0.ffn_up.weight", (256, 256), quantization=q, num_layers=32) for q in TEXT_QUANTIZATIONS]
    assert [kind.name for kind in texts] == ["F16", "Q8_0", "Q4_0", "Q4_K", "Q4_K", "Q5_K"]
    visions = [vision_type("v.blk.0.ffn_up.weight", (256, 256), quantization=name) for name in MMPROJ_TYPES]
    assert [kind.name for kind in visions] == ["F16", "Q8_0", "F32"]


def test_the_chat_template_spells_prompts_as_the_runners_do():
    prompt = MOBILEVLM.prompt
    template = jinja2.Template(chat_template(prompt, bos="<s>"))
    before, after = map(chunk_text, prompt_chunks("What is it?", template=prompt.template, num_images=1))
    asked = {"role": "user", "content": "<__media__>\nWhat is it?"}
    first = template.render(messages=[asked], add_generation_prompt=True, eos_token="</s>")
    assert first == before + "<__media__>" + after
    (again,) = question_chunks("And now?", template=prompt.template, num_images=0, first_turn=False)
    said = {"role": "assistant", "content": "A cat."}
    turns = [asked, said, {"role": "user", "content": "And now?"}]
    whole = template.render(messages=turns, add_generation_prompt=True, eos_token="</s>")
    assert whole == first + " A cat." + chunk_text(again)
    own = template.render(messages=[{"role": "system", "content": "Be brief."}, asked], add_generation_prompt=True)
    assert own == "Be brief. USER: <__media__>\nWhat is it? ASSISTANT:"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipe", "8da8w"], "there is no option --recipe"),
        (["--model", "nowhere"], "no folder, no hub id"),
        (["--model", "{full}"], "llama.cpp drops the class token"),
        (["--model", "{first}"], "llama.cpp reads all patches; this model drops the first"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_leave_nothing(flags, message, checkpoint_of, tmp_path):
    shapes = {"full": "last_layer_with_class_token", "first": "siglip_without_first_patch"}
    flags = [flag.format(**{name: checkpoint_of(shape) for name, shape in shapes.items()}) for flag in flags]
    done = llava_here("gguf", "--model", "tiny-llava", "--output-dir", tmp_path / "out", *flags)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    done = llava_here("export", "--model", "tiny-llava", "--quantization", "q8_0", "--output-dir", tmp_path)
    assert done.returncode == 2 and "there is no option --quantization" in done.stderr


def test_a_disk_that_is_too_small_is_noticed_before(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_export, "free_disk", lambda folder: 1_000_000)
    with pytest.raises(ExportError, match=r"take \d.* of disk in .*, and 1.0 MiB are free. --force"):
        export("tiny-llava", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "key", "index", "changed", "message"),
    [
        ("ggml-model-f16", "llama.rope.freq_base", 0, 5000.0, "llama.rope.freq_base is 5000.0, and 10000.0 in"),
        ("ggml-model-f16", "tokenizer.ggml.scores", 300, 5.0, "tokenizer.ggml.scores is 5.0, and "),
        ("ggml-model-f16", "tokenizer.ggml.add_bos_token", 0, 0, "tokenizer.ggml.add_bos_token is False, and True in"),
        ("ggml-model-f16", "tokenizer.chat_template", 0, ord("#"), "its chat template makes other prompts"),
        ("mmproj-model-f16", "clip.vision.image_std", 1, 0.5, "clip.vision.image_std is 0.5, and 0.26"),
        ("mmproj-model-f16", "clip.vision.feature_layer", 0, 3, "clip.vision.feature_layer is 3, and "),
    ],
)
def test_what_a_file_says_is_compared(file, key, index, changed, message, exported, tmp_path):
    folder = Path(shutil.copytree(exported("tiny-llava"), tmp_path / "copy"))
    field = GGUFReader(folder / f"{file}.gguf", "r+").fields[key]
    field.parts[field.data[index]][0] = changed
    del field  # which writes the file
    failure, *_ = failures(folder)  # llama.cpp, where it is installed, may not open it, or answer otherwise
    assert message in failure


def test_another_prompt_may_be_asked_for(tmp_path):
    checkpoint = open_checkpoint("tiny-llava")
    prompt = find_prompt(checkpoint, given="mistral")
    export_gguf(checkpoint, quantization="f16", mmproj_type="f16", prompt=prompt, output_dir=tmp_path, stages=Stages())
    assert failures(tmp_path) == []


def test_damaged_files_are_noticed(exported, tmp_path):
    folder = shutil.copytree(exported("tiny-llava"), tmp_path / "copy")
    text = folder / "ggml-model-f16.gguf"
    whole = bytearray(text.read_bytes())
    (weight,) = [t for t in GGUFReader(text).tensors if t.name == "blk.2.ffn_up.weight"]
    start = int(weight.data_offset)
    text.write_bytes(whole[:start] + bytes(2000) + whole[start + 2000 :])
    done = llava_here("verify", folder)
    assert done.returncode == 1 and "blk.2.ffn_up.weight has an error" in done.stdout and "FAIL" in done.stdout
    for damaged in (whole[: len(whole) // 2], b"GGUF", b""):
        text.write_bytes(damaged)
        with pytest.raises(ExportError, match="damaged"):
            failures(folder)
    text.unlink()
    done = llava_here("verify", folder)
    assert done.returncode == 2 and "has no ggml-model-*.gguf" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["mobilevlm", "plain", "mistral", "qwen2", "phi3"])
@torch.no_grad()
def test_split_gives_parts_that_others_read(name, checkpoint_of, tmp_path):
    folder = checkpoint_of(name)
    for _ in range(2):  # the second time over the first one's files
        split(open_checkpoint(str(folder)), tmp_path)
    checkpoint = open_checkpoint(str(folder))
    ours = checkpoint.build_model(max_context_len=8)
    checkpoint.weights.fill(ours, prefix="")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "text-model", dtype=torch.float32).eval()
    ids = torch.tensor([[1, 7, 100, 40]])
    expected = theirs(ids).logits[:, -1]
    found = ours.text_decoder(ours.token_embedding(ids), torch.tensor([0]))
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
    projector, clip = (torch.load(tmp_path / part) for part in ("llava.projector", "llava.clip"))
    keys = {"mobilevlm": "model.mm_projector.model.mb_block.1.block.2.0.weight"}
    (weight,) = [tensor for key, tensor in projector.items() if key.endswith(keys.get(name, "linear_1.weight"))]
    assert weight.dim() == {"mobilevlm": 4}.get(name, 2)
    assert any("position_embedding" in key for key in clip)
    model_type = json.loads((tmp_path / "text-model/config.json").read_text())["model_type"]
    assert model_type == (name if name in LANGUAGE_MODELS else "llama")


@needs_llama_cpp
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_llama_cpp_says_what_the_float_model_says(name, exported):
    asked = [questions.question_for(questions.HELD_OUT_SEED + i) for i in range(50)]
    prompts = [f"USER: {question} ASSISTANT: {answer[: i % 9]}" for i, (_, question, answer) in enumerate(asked)]
    found = list(next_tokens(exported(name) / "ggml-model-f16.gguf", open_checkpoint(name), prompts=prompts))
    assert [token.prompt for token in found if not token.top1] == []
    assert sum(token.kl for token in found) / len(found) < 1e-3
