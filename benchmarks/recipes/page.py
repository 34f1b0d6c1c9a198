"""The text of docs/RECIPES.md, with its tables in place. It is made of the results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from textwrap import fill
from typing import Any

from benchmarks.recipes.entries import DEFAULT, ENTRIES, LLAMA_CPP, RECIPES, Entry
from benchmarks.recipes.results import RESULTS, ROOT, SCENES
from benchmarks.recipes.tables import recipes_table, scenes_table, speed_table
from llava_export.cli.export import ADVICE
from llava_export.recipe import CALIBRATED
from llava_runner.errors import UserError

PAGE = ROOT / "docs" / "RECIPES.md"
GUIDE = ROOT / "docs" / "guides" / "export.md"
BEGIN, END = "<!-- advice: begin -->", "<!-- advice: end -->"
COLUMNS = 120

TEXT = """# Recipes

What a recipe costs and what it keeps. `python -m benchmarks.recipes` measures the figures here and writes this page.
[The guide](guides/export.md#recipes) explains the flags.

## Advice

$advice

## On a real language model

The language model is SmolLM2-135M-Instruct: 30 layers, 576 wide, a head that is tied to the token embedding. What is
"float" here comes from a file of type Q4_1. So small a model loses more by rounding than one of 7B. Each recipe is
compared with the float model on $windows windows of $window_len tokens of English prose that no calibration saw. There
the float model has a perplexity of $perplexity.

$recipes
![KL against bytes](benchmarks/recipes-bytes.png)

- "size" is what the values and scales of the language model take: token embedding, layers and head. For llama.cpp it is
  what they take in the GGUF file. The rest of a program is the same for all, and small.
- "bits" are those of a weight in the linears of the layers, scales included.
- "KL" is the mean Kullback-Leibler divergence of the next token from the float model's, in nats. "Same top-1" is how
  often both find the same token the likeliest. In brackets are 95 % intervals, by Student's t over the windows.
- "decode speed" is that of a program, as a multiple of the default's ([how](#decode-speed)). It does not depend on how
  weights are rounded. Where it is empty it was not timed.
- llama.cpp's types are quantized by the code of `llava gguf`, decoded by the `gguf` package, and computed in float:
  only weights are rounded. Programs for ExecuTorch round activations to 8 bits, too.
- llama.cpp's K-quants have blocks of 256 values, which do not divide rows of 576. Only `ffn_down` has rows of 1536. All
  other matrices get the types that llama.cpp falls back to: Q5_0 for Q4_K, Q5_1 for Q5_K, and Q8_0 for Q6_K. So
  `q4_k_m` takes more bits here than in a model of 4096, and the head has 8.5 bits in all of them.
- Q4_1 has 16 steps for each 32 weights. Q4_K, which `ffn_down` has, can have the same steps and meets most of them, so
  `q4_k_m` is nearer to float here than it would be on other models, and nearer than `q5_k_m`. Groups of 32 may gain by
  it, too.
- `former-default` is the default of version 0.1. Its head of 4 bits cannot be stored with the embedding of 8.

$beside

```console
$$ python -m benchmarks.real_llm --work-dir smollm2
$$ python -m benchmarks.recipes measure --work-dir smollm2 --device cuda
```

$devices

## Decode speed

The programs of the recipes that are computed in different ways, with the C++ runner, in turn for $rounds rounds. Each
figure is the median, and ± says how far the farthest round lies from it. The ratio is computed round by round: its
median, with the lowest and the highest.

$speed
![KL against decode speed](benchmarks/recipes-speed.png)

```console
$$ python -m benchmarks.recipes speed --work-dir smollm2
```

$machine

$scenes"""
SCENES_TEXT = """## On scenes

The three built-in models answer questions about $count scenes that are hard for them: more shapes, smaller ones, and
noise. Accuracy is with its 95 % interval, and KL is that of the answers' tokens from the float model's, in nats. These
models were trained with rounded weights, so their losses are small: the smallest p-value of McNemar's exact test
against float is $p_value. Recipes with samples read those that ship with the project.

$table
```console
$$ python -m benchmarks.recipes scenes
```
"""


def render(results: Mapping[str, Any], scenes: Sequence[Mapping[str, Any]]) -> str:
    """Return the page. Raises ``UserError`` if figures are missing, or are not of one text."""
    text, measured = checked(results), results["measured"]
    floats, speed = measured[DEFAULT.name]["float_perplexity"]["value"], results["speed"]
    page = Template(TEXT).substitute(
        advice=advice(),
        perplexity=f"{floats:.1f}",
        windows=text["windows"],
        window_len=text["window_len"],
        recipes=recipes_table(results),
        beside=_filled(beside_llama_cpp(measured)),
        devices=_filled(devices(measured)),
        rounds=len(speed["rounds"][DEFAULT.name]),
        speed=speed_table(speed),
        machine=_filled(
            "{processor} ({extensions}), {memory}; {system}; ExecuTorch {executorch}.".format(**speed["machine"])
        ),
        scenes=Template(SCENES_TEXT).substitute(
            table=scenes_table(scenes), count=scenes[0]["scenes"], p_value=f"{min(it['p_value'] for it in scenes):.2f}"
        ),
    )
    return page.rstrip() + "\n"


def checked(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the text that all entries were measured on. Raises ``UserError`` if there is no such text."""
    measured = results.get("measured", {})
    if missing := [name for name in ENTRIES if name not in measured]:
        raise UserError(f"the page also needs {', '.join(missing)}: measure them, too")
    if "speed" not in results:
        raise UserError("the page also needs the speed of decoding: the step speed measures it")
    if old := [entry.name for entry in RECIPES if measured[entry.name]["key"]["flags"] != entry.flags]:
        raise UserError(f"{', '.join(old)} had other flags when measured: measure again")
    text: Mapping[str, Any] = measured[DEFAULT.name]["key"]["text"]
    if other := [name for name in ENTRIES if measured[name]["key"]["text"] != text]:
        raise UserError(f"{', '.join(other)} was measured on another text than {DEFAULT.name}: measure again")
    return text


def beside_llama_cpp(measured: Mapping[str, Any]) -> str:
    """Return sentences that compare recipes with llama.cpp's types: at equal bytes, and at equal KL."""
    ours = [entry.name for entry in RECIPES if entry.name != "fp32"]
    q4_0, kl = measured["q4_0"], {name: measured[name]["kl"]["value"] for name in measured}
    calibrated = [name for name in ours if measured[name]["recipe"]["algorithm"] in CALIBRATED]
    fitting = [name for name in calibrated if measured[name]["bytes"] <= q4_0["bytes"]]
    best = min(fitting or calibrated, key=lambda name: kl[name])
    sentences = [
        f"`q4_0` takes {_size(q4_0)} and has a KL of {kl['q4_0']:.3f}; the default takes {_size(measured['default'])} "
        f"and has {kl['default']:.3f}, and `{best}` takes {_size(measured[best])} and has {kl[best]:.3f}."
    ]
    for entry in LLAMA_CPP[1:]:
        enough = [name for name in ours if kl[name] <= kl[entry.name]]
        theirs = f"`{entry.name}` ({_size(measured[entry.name])}, {kl[entry.name]:.3f})"
        if not enough:
            sentences.append(f"No recipe but `fp32` is as near to the float model as {theirs}.")
            continue
        least = min(enough, key=lambda name: measured[name]["bytes"])
        sentences.append(
            f"The smallest recipe that is as near to the float model as {theirs} is `{least}`, "
            f"{_size(measured[least])}."
        )
    return " ".join(sentences)


def devices(measured: Mapping[str, Any]) -> str:
    """Return what computed the figures, and what was calibrated with how much."""
    by_device: dict[str, list[str]] = {}
    for name in ENTRIES:
        by_device.setdefault(measured[name]["device"], []).append(name)
    main = max(by_device, key=lambda device: len(by_device[device]))
    sentences = [f"The figures were computed in torch on {main}."]
    for device, names in by_device.items():
        if device != main:
            sentences.append(f"Those of {', '.join(names)} were computed on {device}.")
    samples = {measured[it.name]["key"]["calibration"]["samples"] for it in RECIPES if _uses_data(it, measured)}
    sentences.append(
        f"Recipes with samples were calibrated with up to {' or '.join(map(str, sorted(samples)))} parts of the text "
        "`calibration.npy`, which comes from the same books as the text that is read here. `llava evaluate --text` "
        "measures one recipe in the same way."
    )
    return " ".join(sentences)


def _uses_data(entry: Entry, measured: Mapping[str, Any]) -> bool:
    return "calibration" in measured[entry.name]["key"]


def advice() -> str:
    """Return the advice as Markdown."""
    return _filled(" ".join(ADVICE))


def with_advice(guide: str) -> str:
    """Return the guide with the advice between its markers. Raises ``UserError`` if one is missing."""
    before, begin, rest = guide.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{GUIDE.name} must have the lines {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{advice()}\n{END}{after}"


def pages(results_file: Path = RESULTS) -> dict[Path, str]:
    """Return the page and the guide as the results make them, by their paths."""
    guide = {GUIDE: with_advice(GUIDE.read_text(encoding="utf-8"))}
    results = json.loads(results_file.read_text(encoding="utf-8"))
    scenes = json.loads(SCENES.read_text(encoding="utf-8"))
    return {PAGE: render(results, scenes), **guide}


def _size(found: Mapping[str, Any]) -> str:
    return f"{found['bytes'] / 1e6:.1f} MB"


def _filled(text: str) -> str:
    return fill(text, COLUMNS, break_long_words=False, break_on_hyphens=False)
