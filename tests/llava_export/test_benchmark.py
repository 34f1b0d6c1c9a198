"""The figures that the benchmark makes of its rounds, and how they are shown. The integration tests run real rounds."""

from __future__ import annotations

import copy
import json
import sys
from types import SimpleNamespace

import pytest

from benchmarks import page
from benchmarks.readme import BEGIN, END, readme_table, update_readme, with_table
from llava_export.benchmark import ladders, rounds
from llava_export.benchmark.profile import call_profile, short
from llava_export.benchmark.rounds import BenchmarkError, Contender, Figure, Results, Work, figures, take_turns
from llava_export.benchmark.show import change, results_table, with_spread
from llava_runner.errors import UserError
from tests.llava_export.terminal import printed

MEASURED = {
    "load_ms": 500.0,
    "image_ms": 250.0,
    "prompt_tokens": 600,
    "prompt_ms": 2000.0,
    "decode": [{"depth": 0, "tokens": 32, "ms": 1000.0}, {"depth": 600, "tokens": 32, "ms": 1600.0}],
    "peak_bytes": 2**30,
    "anonymous_bytes": 2**29,
}


@pytest.fixture
def work(tmp_path) -> Work:
    return Work(tmp_path / "image.png", prompt_tokens=600, decode_tokens=32, depths=(0, 600), threads=2)


def contender(name, script, log):
    """Return a contender that appends its name to a file, then does what the script says."""
    return Contender(
        name, (sys.executable, "-c", f"import sys\nopen({str(log)!r}, 'a').write({name!r} + ' ')\n{script}")
    )


def test_figures_are_seconds_rates_and_gib():
    assert figures(MEASURED) == {
        "load": 0.5,
        "image": 0.25,
        "prompt": 2.0,
        "prefill": 300.0,
        "first token": 2.25,
        "decode at 0": 32.0,
        "decode at 600": 20.0,
        "peak memory": 1.0,
        "peak, without files": 0.5,
    }
    assert [rounds.unit(name) for name in ("load", "prefill", "decode at 7", "peak memory")] == [
        "s",
        "tok/s",
        "tok/s",
        "GiB",
    ]


def test_work_fits_what_the_program_takes(tmp_path):
    def work(**given):
        return Work.fitting(image=tmp_path, threads=3, **given)

    usual = work(max_seq_len=768, max_context_len=768)
    assert (usual.prompt_tokens, usual.decode_tokens, usual.depths, usual.threads) == (600, 32, (0, 600), 3)
    short_context = work(max_seq_len=768, max_context_len=200)
    assert (short_context.prompt_tokens, short_context.depths) == (168, (0, 168))
    short_calls = work(max_seq_len=128, max_context_len=768)
    assert short_calls.prompt_tokens == 128
    large_image = work(max_seq_len=1024, max_context_len=1024, num_image_tokens=729)
    assert (large_image.prompt_tokens, large_image.depths) == (753, (0, 600))
    asked = work(max_seq_len=128, max_context_len=768, prompt_tokens=700, decode_tokens=2, depths=[5])
    assert (asked.prompt_tokens, asked.decode_tokens, asked.depths) == (700, 2, (5,))


def test_contenders_take_turns_after_warming_up(work, tmp_path):
    log = tmp_path / "log"
    script = f"print('packing')\nprint({json.dumps(MEASURED)!r})"
    seen: list[str] = []
    results = take_turns([contender(name, script, log) for name in "ab"], work, runs=3, on_round=seen.append)
    assert log.read_text().split() == list("abababab")
    assert seen == ["a, warming up", "b, warming up", *(f"{name}, round {i} of 3" for i in (1, 2, 3) for name in "ab")]
    assert [len(values) for values in results.rounds.values()] == [3, 3]
    assert results.depths("b") == {0: Figure(32.0, 32.0, 32.0), 600: Figure(20.0, 20.0, 20.0)}


def test_what_a_contender_says_is_passed_on(work, tmp_path):
    wrong = contender("a", "sys.stderr.write('note: hm\\nerror: no such program\\n'); sys.exit(2)", tmp_path / "log")
    with pytest.raises(BenchmarkError, match=r"^a: no such program$"):
        wrong.round(work)
    broken = contender("a", "raise ValueError('a bug')", tmp_path / "log")
    with pytest.raises(RuntimeError, match="a bug"):
        broken.round(work)


def test_better_is_faster_and_smaller(work):
    def values(speed):
        return {"first token": 4 / speed, "prefill": 100 * speed, "peak memory": 8 / speed}

    results = Results(work, {"a": [values(2), values(4)], "b": [values(1), values(1)]})
    for name in results.names():
        assert results.ratio("a", "b", name) == Figure(3.0, 2.0, 4.0)
    text = printed(results_table(results, peer="b"), width=80)
    assert text.count("3.00x (2.00-4.00)") == 3


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(7.8449, 7.8, 8.0), "7.84 ±2%"),
        (Figure(0.28349, 0.28, 0.2835), "0.283 ±1%"),
        (Figure(404.9, 398, 411), "405 ±2%"),
        (Figure(2349.4, 2300, 2360), "2349 ±2%"),
        (Figure(35.04, 20, 36), "35.0 ±43%"),
        (Figure(0.0, 0.0, 0.0), "0.000 ±0%"),
    ],
)
def test_three_digits_and_the_farthest_round(figure, text):
    assert with_spread(figure) == text


def test_change_from_the_rung_before():
    assert change(17.82, 29.95) == "-41%"
    assert change(8.93, 8.75) == "+2%"
    assert change(5.0, None) == change(None, 5.0) == ""


def test_operators_have_short_names():
    assert short("Fully Connected (NC, QDU8, F32, QB4W) GEMM") == "Fully Connected QDU8 QB4W"
    assert short("Multiply (ND)") == "Multiply"
    assert short("llama.custom_sdpa") == "llama.custom_sdpa"


def event(name, instruction, raw, *, delegated=False):
    return SimpleNamespace(
        name=name, _instruction_id=instruction, is_delegated_op=delegated, perf_data=SimpleNamespace(raw=raw)
    )


def test_a_call_is_divided_into_operators():
    def events(scale):
        return [
            event("Multiply (ND) #1", 0, [1.0, 2 * scale], delegated=True),
            event("Multiply (ND) #2", 0, [1.0, 3 * scale], delegated=True),
            event("DELEGATE_CALL", 0, [3.0, 6 * scale]),
            event("llama::custom_sdpa.out", 1, [4.0, 8 * scale]),
            event("OPERATOR_CALL", 1, [5.0, 9 * scale]),
            event("OPERATOR_CALL", 2, [0.0, 1 * scale]),
            event("Method::execute", 0, [9.0, 20 * scale]),
        ]

    first = call_profile("first", [events(1.0)], slice(0, 1))
    assert (first.total, first.delegates, first.delegated) == (9.0, 3.0, {"Multiply (ND)": 2.0})
    later = call_profile("later", [events(1.0), events(2.0), events(9.0)], slice(1, None))
    assert later.outside == {"llama.custom_sdpa": 18.0, "aliases and sizes": 2.0}
    assert dict(later.parts()) == {
        "llama.custom_sdpa": 18.0,
        "Multiply (ND)": 10.0,
        "runtime": 8.0,
        "calling delegates": 2.0,
        "aliases and sizes": 2.0,
    }
    assert sum(spent for _, spent in later.parts()) == later.total == 40.0
    assert later.instructions == {0: 12.0, 1: 18.0, 2: 2.0}


def test_a_ladder_exports_once_what_its_rungs_share(work, tmp_path, monkeypatch):
    exported: list[tuple[str, tuple[str, ...]]] = []
    ran: list[tuple[str, tuple[str, ...]]] = []

    def export(model, rung, program):
        exported.append((model, rung.export))
        program.touch()

    def run(contenders, work, *, runs, warm_up, on_round):
        ran.extend((contender.name, contender.command[1:]) for contender in contenders)

    monkeypatch.setattr(ladders, "export", export)
    monkeypatch.setattr(ladders, "take_turns", run)
    monkeypatch.setattr(rounds, "LLAVA_BENCH", tmp_path / "llava_bench")
    (tmp_path / "llava_bench").touch()
    for ladder in (ladders.speed_ladder("decode at 600"), ladders.MEMORY_LADDER):
        ladders.run_ladder(ladder, "model", work, folder=tmp_path, runs=1)
    long = ("--max-seq-len=2048", "--max-context-len=2048", "--embedding-bits=32")
    # The last rung of both is the default, and two rungs of memory differ only in how they are run.
    assert exported == [("model", flags) for flags in (("--partitioners=1",), (), long, ("--embedding-bits=32",))]
    unpacked = ("--packed-cache-path=off",)
    separate = (*unpacked, "--workspace-sharing=disabled")
    assert [flags[1:] for _, flags in ran] == [(), (), separate, unpacked, unpacked, unpacked]
    assert len({flags[0] for _, flags in ran}) == 4


def test_the_page_says_what_was_measured():
    """Nobody edits a number by hand: the page is what its script makes of results.json."""
    results = json.loads(page.RESULTS.read_text())
    assert page.PAGE.read_text() == page.render(results)
    for line in page.PAGE.read_text().splitlines():
        if line.startswith("!["):
            assert (page.PAGE.parent / line.partition("(")[2].rstrip(")")).is_file()


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(page.RESULTS.read_text())


def test_the_readmes_table_is_small_and_has_the_measured_figures(results):
    header, line, *rows = [row.strip("| ").split(" | ") for row in readme_table(results).splitlines()]
    assert header == ["compared with", "llava-1.5-7b", "theirs", "mobilevlm-1.7b", "theirs"]
    assert 0 < len(rows) <= 8
    assert {len(row) for row in rows} == {len(line)} == {6}
    exported, speed = results["export"]["llava-1.5-7b"], results["speed"]["mobilevlm-1.7b"]["figures"]
    time, program, decode = (next(row for row in rows if word in row[0]) for word in ("time", "program", "decoding"))
    seconds = [exported[name]["seconds"] for name in ("llava_export", "straightforward")]
    assert time[1:4] == ["straightforward pipeline", *(f"{value:.0f} s" for value in seconds)]
    size, *gguf = exported["bytes"].values()
    assert program[2:4] == [f"{size / 1e9:.2f} GB", f"{sum(gguf) / 1e9:.2f} GB"]
    speeds = [speed[name]["decode at 600"]["median"] for name in ("cpp", "llama.cpp")]
    assert decode[4:] == [f"{value:.1f} tok/s" for value in speeds]


def test_the_readme_gets_the_table_between_its_markers(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe rest.\n", encoding="utf-8")
    update_readme(readme, results)
    assert readme.read_text(encoding="utf-8") == f"# Title\n\n{BEGIN}\n{readme_table(results)}{END}\n\nThe rest.\n"
    assert with_table(readme.read_text(), results) == readme.read_text()
    faster = copy.deepcopy(results)
    faster["export"]["llava-1.5-7b"]["llava_export"]["seconds"] = 7.0
    update_readme(readme, faster)
    assert "| 7 s |" in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["no markers", f"{BEGIN} alone", f"{END} before {BEGIN}"])
def test_a_readme_without_markers_is_left_alone(text, results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(UserError, match="figures: end"):
        update_readme(readme, results)
    assert readme.read_text() == text
