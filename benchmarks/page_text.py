"""The text of docs/BENCHMARKS.md, with its tables in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Template
from typing import Any

from benchmarks.measuring import PEER
from benchmarks.page_scenes import scenes_section
from benchmarks.page_tables import (
    console,
    drafts_table,
    export_table,
    ladder_table,
    profile_table,
    rows_table,
    sizes_table,
    speed_table,
)
from llava_export.benchmark.ladders import Ladder, Rung
from llava_export.benchmark.rounds import Results
from llava_runner.bench import DEFAULT_PROMPT_TOKENS
from llava_runner.draft import DRAFT_MAX

TEXT = """# Benchmarks

`python -m benchmarks.page --work-dir DIR` measures all figures here and writes this page. The checkpoints have the
published sizes and random weights, because the values of weights do not change the speed. To run one of the commands
below, install the project, set `PYTHONPATH` to the checkout, and type it in DIR. First make the checkpoints there:

$checkpoints
$machines
- A figure with ± is the median over several rounds. A round is a process of its own, and rounds of everything that is
  compared take turns. ± is how far the farthest round lies from the median.
- $again

## Export

The export includes the golden record: a second process asks the float model, and its memory is counted. The
straightforward pipeline puts every layer through ExecuTorch's compiler, and makes no golden record.

$export
## On the device, and compared with llama.cpp

- `cpp` is the code of `llava_main`, timed by `llava_bench`. An earlier start has packed the weights into a file.
- `python` is the code of `llava run`, timed by `python -m llava_runner.bench`.
- llama.cpp runs the same language model as `q4_0`, with the vision tower as `f16`.
- "first token" is the time of image and prompt. It does not include loading.
- "peak, without files" is memory that holds no content of a file, so the system cannot drop it. It is read at the end
  of a round.
- "better" says how many times better `cpp` is than llama.cpp. It is computed round by round: the median, with the
  lowest and the highest.

$speed
## Guessed tokens

A draft that knows the tokens guesses them ([how drafts work](guides/drafts.md)). Each guess is right with so many
percent if those before it were. How many it guesses at a time depends on how many were right lately. What making
guesses takes is not in these figures: prompt lookup takes nearly nothing, and a model that drafts its own time.

- "accepted" are the guesses that stood. One that follows a wrong one does not, so they are fewer.
- "tokens a call" is what a call of the decoder gave: its own token, and the guesses that stood. The green line of the
  plots is published for LLaVA-7B, with a draft of 115 million parameters that sees no image (arXiv 2404.08856): weights
  are read 2.37 times less often, those of the draft included. With 3 to 5 guesses that is 2.5 tokens a call.
- "changed tokens" came out otherwise than without a draft.
- llama.cpp decodes without a draft, the same language model as `q4_0`.

The time of a call has two steps, which the traced parts explain. One row is bound by memory: the processor waits for
weights. From two rows on, XNNPACK takes another kernel. It computes $tile rows at a time, and as much if there are
fewer. That takes longer than reading the weights, so two rows take longer than one, and $tile rows as long as two. With
row $next a second round of it begins. Attention takes longer with each row, as each is compared with the whole cache.

$draft
$scenes
## Where the time goes

These are times from ExecuTorch's event tracer in the C++ runner. Tracing itself costs a little. Operators in italics
run outside XNNPACK's delegates.

$profile
## The published ladders

One checkpoint is exported and run with one thing changed at a time. The published figures are those of LLaVA-1.5-7B on
a OnePlus 12. That is another processor at another time, so only the directions can be compared. In the memory ladder
weights are packed in memory (`--packed-cache-path=off`), not in a mapped file, so more memory cannot be dropped.

$ladders
Two steps change nothing here, or nothing that is larger than the noise:

- The second partitioner does not make decoding faster. Linears and attention take most of a token's time, as the
  profile above shows, and they are the same with one partitioner. The second partitioner takes over the operators
  between the linears. In the prompt those have hundreds of rows to work on, so there it helps.
- The 8-bit embedding does not save memory. The table of the embedding lies in the program's file, which is mapped. So
  only the rows of tokens that occur are ever in memory, whatever their type. Eight bits make the program smaller
  instead: `llava inspect` shows that part.

## Published, on phones

These figures were not measured here. They are for context.

- LLaVA-1.5-7B by ExecuTorch on a OnePlus 12: prefill in 14.60 s with Arm's i8mm kernels, 8.92 tokens decoded a second,
  about 5 GiB.
- MobileVLM-1.7B by llama.cpp (q4_k, 4 threads) on a Snapdragon 888: the image in 21.1 s, 19.7 tokens of prefill and
  14.1 decoded tokens a second.
"""

BOUND_BY_MEMORY = 0.8  # of what memory gives: with less, something else limits decoding
RECIPES = """The recipes are the defaults of the time when each model was measured:
"""


def render(results: Mapping[str, Any]) -> str:
    """Return the page, made of the results alone."""
    return Template(TEXT).substitute(
        checkpoints=checkpoints(results["export"]),
        machines=machines(results["speed"]),
        again=again(results.get("again", {})),
        export=export_section(results["export"]),
        speed=speed_sections(results["speed"], results["export"], results["profile"]),
        draft=draft_sections(results["draft"]),
        tile=DRAFT_MAX + 1,
        next=DRAFT_MAX + 2,
        scenes=scenes_section(results["scenes"]),
        profile=profile_sections(results["profile"]),
        ladders=ladder_sections(results["ladders"]),
    )


def checkpoints(models: Iterable[str]) -> str:
    """Return the commands that make the checkpoints."""
    return console(f"python -m benchmarks.make_checkpoint --like {model} --out {model}" for model in models)


def machines(speed: Mapping[str, Any]) -> str:
    """Return lines that say on which machine, and with which llama.cpp, each model was measured."""
    models: dict[str, list[str]] = {}
    for model, found in speed.items():
        here = Template("$processor ($extensions), $memory; $system; ExecuTorch $executorch; $peer")
        models.setdefault(here.substitute(found["machine"], peer=found["peer"]), []).append(model)
    return "\n".join(f"- {', '.join(names)}: {machine}" for machine, names in models.items())


def again(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return sentences about the figures that were measured twice. ``found`` is from ``differences``."""
    if not found:
        return "Every figure was measured once."
    apart = sorted((abs(each["ratio"] - 1), name) for name, each in found.items())
    in_rounds = [each["overlap"] for each in found.values() if each["overlap"] is not None]
    half, most = apart[len(apart) // 2][0], apart[len(apart) * 9 // 10][0]
    return (
        f"{len(apart)} of the figures were measured a second time, at another hour. Half of them differ by at most "
        f"{half:.1%} and nine in ten by at most {most:.1%}.\n"
        f"  The largest difference is {apart[-1][0]:.0%} ({apart[-1][1]}). The ranges of the rounds overlap for "
        f"{sum(in_rounds)} of {len(in_rounds)}."
    )


def export_section(export: Mapping[str, Any]) -> str:
    """Return the tables of the export with its commands."""
    pipelines = ("llava_export", "straightforward")
    commands = [found[name]["command"] for found in export.values() for name in pipelines if name in found]
    recipes = "".join(f"- {model}: {found['recipe']}\n" for model, found in export.items())
    return "\n".join([export_table(export), console(commands), sizes_table(export), RECIPES, recipes])


def speed_sections(speed: Mapping[str, Any], export: Mapping[str, Any], profile: Mapping[str, Any]) -> str:
    """Return a section about speed and memory for each model."""
    sections = []
    for model, found in speed.items():
        work = found["work"]
        sections += [
            f"### {model}\n",
            f"{work['prompt_tokens']} positions of prompt, {work['decode_tokens']} tokens decoded at each depth, "
            f"{work['threads']} threads, {len(found['rounds']['cpp'])} rounds.\n",
            speed_table(found),
            console([found["command"]]),
            what_limits(found, export[model]["bytes_per_token"], profile[model]["profiles"][-1]),
            f"![stages, and decoding against depth](benchmarks/speed-{model}.png)\n",
        ]
    return "\n".join(sections)


def what_limits(found: Mapping[str, Any], read: Mapping[str, float], token: Mapping[str, Any]) -> str:
    """Return a paragraph that explains the decoding speed that was ``found``.

    ``read`` has the bytes that a token reads, by runner, and ``token`` is its profile.
    """
    spent = {**token["delegated"], **token["outside"]}
    reading = sum(value for name, value in spent.items() if name.startswith(("Fully Connected", "llama.custom_sdpa")))
    ours, theirs = read["llava_export"], read[PEER]
    share, rate = reading / token["total"], ours / 1e6 / token["total"]
    reads = (
        f"A token at depth {DEFAULT_PROMPT_TOKENS} reads {ours / 1e9:.2f} GB of weights and cache here, which is "
        f"{rate:.0f} GB/s in the traced run."
    )
    parts = (
        f"Linears and attention read them, and take {share:.0%} of the token's time by the profile below. llama.cpp "
        f"reads {theirs / 1e9:.2f} GB."
    )
    if "memory_rate" in found:
        decoded = Results(found["work"], found["rounds"]).figure("cpp", f"decode at {DEFAULT_PROMPT_TOKENS}").median
        of_memory = decoded * ours / found["memory_rate"]
        parts += (
            f"\nThreads that only add up what they read of memory got {found['memory_rate'] / 1e9:.0f} GB/s, and "
            f"decoding {of_memory:.0%} of that."
        )
        if of_memory < BOUND_BY_MEMORY:
            return f"{reads}\n{parts} So the kernels for this processor limit it, and not memory.\n"
    return (
        f"Decoding is bound by memory. {reads}\n{parts}\nAt the same bandwidth that makes us "
        f"**{theirs / ours:.2f}** times as fast. A larger ratio comes from better use of the bandwidth.\n"
    )


def draft_sections(draft: Mapping[str, Any]) -> str:
    """Return a section about guessed tokens for each model."""
    sections = []
    for model, found in draft.items():
        sections += [
            f"### {model}, {found['work']['decode_tokens']} tokens at depth {found['depth']}\n",
            Template("$processor ($extensions)\n").substitute(found["machine"]),
            rows_table(found),
            drafts_table(found),
            console([found["command"]]),
            f"![time by rows, and speed by tokens a call](benchmarks/draft-{model}.png)\n",
        ]
    return "\n".join(sections)


def profile_sections(profile: Mapping[str, Any]) -> str:
    """Return a section about the operators for each model."""
    sections = []
    for model, found in profile.items():
        sections += [
            f"### {model}\n",
            profile_table(found["profiles"]),
            console([found["command"]]),
            f"![operators](benchmarks/profile-{model}.png)\n",
        ]
    return "\n".join(sections)


def ladder_sections(ladders: Mapping[str, Any]) -> str:
    """Return a section for each ladder of each model."""
    sections = []
    for model, found in ladders.items():
        for written in found["ladders"]:
            rungs = tuple(Rung(**rung) for rung in written["rungs"])
            ladder = Ladder(written["name"], tuple(written["compared"]), rungs)
            results = Results(written["work"], written["rounds"])
            sections += [f"### {ladder.name.capitalize()}, {model}\n", ladder_table(ladder, results)]
        sections += [console([found["command"]]), f"![both ladders](benchmarks/ladders-{model}.png)\n"]
    return "\n".join(sections)
