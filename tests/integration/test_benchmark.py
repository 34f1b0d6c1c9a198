"""The benchmark on a real package, through both runners, and with llama.cpp where that is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from llava_export.benchmark import ladders
from llava_export.benchmark.drafts import PERCENTS, ROWS
from llava_export.benchmark.profile import profile, read_events
from llava_export.benchmark.rounds import Work, cpp_runner, python_runner
from llava_export.pte.read.describe import card_of
from llava_export.pte.read.program import read_pte
from llava_runner.contract import METHODS
from tests.commands import llava, llava_here
from tests.marks import needs_llama_cpp

SHORT = ("--prompt-tokens=100", "--decode-tokens=4", "--depth=0,120")
FIGURES = [
    "load",
    "image",
    "prompt",
    "prefill",
    "first token",
    "decode at 0",
    "decode at 120",
    "peak memory",
    "peak, without files",
]


def benchmark(*arguments, columns=80):
    """Run ``llava benchmark`` in a terminal of so many columns."""
    return llava("benchmark", *arguments, env={**os.environ, "COLUMNS": str(columns)})


@pytest.fixture
def work(tiny_package) -> Work:
    image = tiny_package.folder / "image.png"
    return Work(image, prompt_tokens=100, decode_tokens=4, depths=(120, 0), threads=2)


def test_both_runners_are_timed_in_one_table(tiny_package, native_build, tmp_path):
    numbers, plot = tmp_path / "numbers.json", tmp_path / "plot.png"
    flags = (*SHORT, "--runner", "cpp", "python", "--runs", 2, "--json", numbers, "--plot", plot)
    done = benchmark(tiny_package.folder, *flags, columns=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    written = json.loads(numbers.read_text())
    assert list(written["figures"]) == ["cpp", "python"]
    for runner, figures in written["figures"].items():
        assert list(figures) == FIGURES
        for name, figure in figures.items():
            values = [values[name] for values in written["rounds"][runner]]
            assert len(values) == 2 and figure["low"] == min(values) <= figure["median"] <= max(values)
            assert figure["median"] > 0
            shown = next(line for line in done.stdout.splitlines() if line.startswith(f"{name}, {figure['unit']}"))
            assert shown.count("±") == 2 and shown.endswith("%")
    first = written["rounds"]["cpp"][0]
    assert first["first token"] == pytest.approx(first["image"] + first["prompt"])
    assert first["prefill"] == pytest.approx(100 / first["prompt"])
    # Without torch and Python the same work takes less memory. Otherwise the two would have been exchanged.
    assert written["figures"]["cpp"]["peak memory"]["high"] < written["figures"]["python"]["peak memory"]["low"]
    assert written["work"]["depths"] == [0, 120] and written["machine"]["executorch"] in done.stdout
    with Image.open(plot) as image:
        assert image.width > 1000 and len(set(image.convert("RGB").resize((200, 80)).getdata())) > 20


@pytest.mark.parametrize("make", [cpp_runner, python_runner])
def test_a_round_is_what_was_asked_for(make, tiny_package, native_build, work, tmp_path):
    """The trace counts the calls: the prompt, the positions up to the first depth, and the tokens at both depths."""
    make(tiny_package.program).round(work, f"--etdump-path={tmp_path}")
    calls = {}
    for method in METHODS:
        events = read_events(tmp_path / f"{method}.etdump")
        (whole,) = (event for event in events if event.name == "Method::execute")
        calls[method] = len(whole.perf_data.raw)
    tokens = work.decode_tokens * len(work.depths)
    assert calls == {"vision_encoder": 1, "token_embedding": 2 + tokens, "text_decoder": 2 + tokens}


def test_threads_reach_the_python_runtime(tiny_package):
    script = (
        "from llava_runner.program import Program; from executorch.extension.pybindings import _C\n"
        f"Program.open({str(tiny_package.program)!r}, cpu_threads=3)\n"
        "print(_C._threadpool_get_thread_count())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "3"


@pytest.mark.parametrize("runner", ["cpp", "python"])
def test_a_profile_divides_the_time_by_operator(runner, tiny_package, native_build, work):
    make = cpp_runner if runner == "cpp" else python_runner
    after_the_prompt = replace(work, depths=(work.prompt_tokens,))
    encoder, embedding, prefill, token = profile(make(tiny_package.program), after_the_prompt, runs=2)
    for call in (encoder, embedding, prefill, token):
        assert sum(spent for _, spent in call.parts()) == pytest.approx(call.total, rel=0.1)
    methods = {method.name: method for method in read_pte(tiny_package.program).methods}
    # Every kind of operator that XNNPACK runs has a name of its own in the trace.
    for call, method in ((encoder, "vision_encoder"), (token, "text_decoder")):
        timed = {name.partition(" (")[0].replace(" ", "") for name in call.delegated}
        assert {"FullyConnected", "BatchMatrixMultiply"} <= timed
        assert len(timed) <= len(methods[method].xnnpack) + 3
        assert not set(call.delegated) & set(call.outside)
    assert {"llama.custom_sdpa", "llama.update_cache"} <= set(prefill.outside)
    assert set(prefill.outside) == set(token.outside) and set(embedding.outside) == {"embedding_byte"}
    assert not embedding.delegated
    assert token.name == "text_decoder, one token at depth 100" and prefill.total > 2 * token.total


def test_the_profile_is_shown(tiny_package, native_build, tmp_path):
    numbers, plot = tmp_path / "numbers.json", tmp_path / "plot.png"
    flags = ("--prompt-tokens=100", "--decode-tokens=4", "--runs", 1, "--json", numbers, "--plot", plot)
    done = benchmark(tiny_package.program, "--profile", *flags, columns=60)
    assert done.returncode == 0, done.stderr
    profiles = json.loads(numbers.read_text())["profiles"]
    assert [each["name"].partition(",")[0] for each in profiles] == [
        "vision_encoder",
        "token_embedding",
        "text_decoder",
        "text_decoder",
    ]
    for each in profiles:
        assert f"{each['total']:.2f}" in done.stdout
    # XNNPACK rounds a linear's inputs to signed bytes or unsigned ones (QDU8), as suits the processor.
    assert re.search("Fully Connected QDU?8 QB4W", done.stdout) and "llama.custom_sdpa" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 60
    with Image.open(plot) as image:
        assert image.width > 1000


def test_rungs_are_what_they_are_called(checkpoint_of, tmp_path):
    """Both first rungs are exported in one program, as the ablation exports them, and read back from its file."""
    speed, memory = ladders.speed_ladder("decode at 0").rungs[0], ladders.MEMORY_LADDER.rungs[0]
    rung = replace(memory, export=(*speed.export, *memory.export))
    ladders.export(str(checkpoint_of("shallow")), rung, tmp_path / "first.pte")
    found = read_pte(tmp_path / "first.pte")
    (decoder,) = (method for method in found.methods if method.name == "text_decoder")
    assert set(decoder.xnnpack) == {"Convert", "FullyConnected"}
    card = card_of(found)
    assert card
    assert (card.max_seq_len, card.max_context_len) == (2048, 2048)
    assert card.recipe["embedding_bits"] == 32


def test_separate_workspaces_take_more_memory(tiny_package, native_build, work):
    separate, shared, *_ = ladders.MEMORY_LADDER.rungs
    peaks = []
    for rung in (separate, shared):
        runner = cpp_runner(tiny_package.program, name=rung.name, flags=rung.run)
        peaks.append(runner.round(work)["peak, without files"])
    assert peaks[0] > 1.2 * peaks[1]


@needs_llama_cpp
def test_llama_cpp_is_timed_too(tiny_package, native_build, tmp_path):
    llava("gguf", "--model=tiny-llava", "--quantization=q4_0", f"--output-dir={tmp_path}", check=True)
    files = ("--gguf", tmp_path / "ggml-model-q4_0.gguf", "--mmproj", tmp_path / "mmproj-model-f16.gguf")
    numbers = tmp_path / "numbers.json"
    done = benchmark(tiny_package.folder, *SHORT, "--peer", "llama.cpp", *files, "--runs", 2, "--json", numbers)
    assert done.returncode == 0, done.stderr
    written = json.loads(numbers.read_text())
    assert list(written["figures"]) == ["cpp", "llama.cpp"] and list(written["figures"]["llama.cpp"]) == FIGURES
    assert written["peer"].startswith("llama-cpp-python ") and "cpp better" in done.stdout
    assert done.stdout.count("x (") == len(FIGURES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a PACKAGE"),
        (["nowhere"], "nowhere does not exist"),
        (["{folder}/tokenizer.bin"], "is not an ExecuTorch program"),
        (["{folder}", "--image", "nowhere.png"], "nowhere.png does not exist"),
        (["{folder}", "--image", "{folder}/llava.json"], "is not an image"),
        (["{folder}", "--runs", "0"], "--runs: 0 must be at least 1"),
        (["{folder}", "--threads", "-1"], "--threads: -1 must be from 1 to 1024"),
        (["{folder}", "--prompt-tokens", "20"], "prompt_tokens 20: it must be from 65 to the context, 768"),
        (["{folder}", "--depth", "0,760"], "depth 760 and 32 decoded tokens do not fit into the context of 768"),
        (["{folder}", "--runner", "python", "--depth", "-1"], "depth -1 and 32 decoded tokens"),
        (["{folder}", "--peer", "llama.cpp"], "go together"),
        (["{folder}", "--gguf", "{folder}/image.png"], "go together"),
        (["{folder}", "--peer", "llama.cpp", "--gguf", "x.gguf", "--mmproj", "y"], "x.gguf does not exist"),
        (["{folder}", "--model", "tiny-llava"], "--model is for --ablation"),
        (["{folder}", "--profile", "--runner", "python", "cpp"], "--profile traces one runner"),
        (["{folder}", "--plot", "plot.doc"], "must end in"),
        (["{folder}", "--json", "/nowhere/x.json"], "folder of /nowhere/x.json does not exist"),
        (["--ablation"], "--ablation needs --model"),
        (["--ablation", "--model", "no-such-model-at-all"], "no-such-model-at-all"),
        (["{folder}", "--ablation", "--model", "tiny-llava"], "no package"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(arguments, message, tiny_package, native_build):
    done = llava_here("benchmark", *(argument.format(folder=tiny_package.folder) for argument in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_drafts_are_timed_by_rows_and_by_how_many_guesses_are_right(tiny_package, native_build, tmp_path):
    numbers, plot = tmp_path / "numbers.json", tmp_path / "plot.png"
    flags = ("--draft", "--prompt-tokens=100", "--decode-tokens=40", "--depth=100", "--runs=2")
    done = benchmark(tiny_package.folder, *flags, "--json", numbers, "--plot", plot)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(numbers.read_text())
    assert found["rows_ratio"]["1"]["median"] == 1 and len(found["rows"]) == len(ROWS)
    assert list(found["ratio"]) == list(map(str, PERCENTS)) and list(found["parts"]) == list(map(str, ROWS))
    assert all(min(parts["linears"], parts["attention"]) > 0 for parts in found["parts"].values())
    for name, accepted in found["accepted"].items():
        assert f"{accepted} of {found['drafted'][name]}" in done.stdout and found["changed"][name] == 0
    assert found["accepted"]["0"] == 0 < found["accepted"]["60"] < found["drafted"]["60"]
    assert found["accepted"]["100"] == found["drafted"]["100"] > 60
    with Image.open(plot) as image:
        assert image.width > 1000
    done = benchmark(tiny_package.folder, "--draft", "--runner=python")
    assert done.returncode == 2 and "--draft times the C++ runner alone" in done.stderr
