"""A page that shows the items on which two packages differ: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from llava_export.evaluate.datasets import Dataset
from llava_export.evaluate.figures import contest, score_figures
from llava_export.evaluate.intervals import Figure
from llava_export.evaluate.records import Record, Result
from llava_runner.errors import ImageError
from llava_runner.image import load_image

MOST_ITEMS = 200  # of a section
SIDE = 360  # pixels of an image on the page, at most

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
  :root { --text: #1c2024; --faint: #60646c; --line: #d9d9e0; --back: #fcfcfd; --card: #ffffff;
          --good: #18794e; --bad: #c62a2f; }
  @media (prefers-color-scheme: dark) {
    :root { --text: #edeef0; --faint: #a0a5ad; --line: #363a3f; --back: #111113; --card: #18191b;
            --good: #3dd68c; --bad: #ff8b8f; }
  }
  body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--back); color: var(--text);
         font: 16px/1.5 system-ui, sans-serif; }
  h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
  p { margin: .25rem 0; } .faint { color: var(--faint); }
  table { display: block; overflow-x: auto; white-space: nowrap; }
  table { border-collapse: collapse; margin: 1.25rem 0; font-variant-numeric: tabular-nums; }
  th, td { border-bottom: 1px solid var(--line); padding: .35rem 1.5rem .35rem 0; text-align: left; }
  th { color: var(--faint); font-weight: 500; } td.number { text-align: right; }
  .items { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
  article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
  article > img { display: block; width: 100%; height: 14rem; object-fit: contain; background: var(--back);
                  border-bottom: 1px solid var(--line); }
  article > div { padding: .8rem 1rem 1rem; overflow-wrap: anywhere; }
  .question { font-weight: 600; white-space: pre-line; margin-bottom: .6rem; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem .8rem; margin: 0; }
  dt { color: var(--faint); } dd { margin: 0; }
  .good { color: var(--good); } .bad { color: var(--bad); }
  .good::after { content: " ✓"; } .bad::after { content: " ✗"; }
</style>
<h1>$title</h1>
<p class="faint">$about</p>
<table>
<tr><th></th><th>package</th><th>$metric</th><th>95 %</th><th>better alone</th></tr>
$rows
</table>
<p>$test</p>
$sections
</html>
""")


def page(records: Sequence[Record], dataset: Dataset, *, names: Sequence[str]) -> str:
    """Return the page about two packages, whose ``names`` are given. It shows what only one of them has right."""
    found = contest(records)
    gains = [(record, record.results[0].score - record.results[1].score) for record in records]
    same = [record for record, gain in gains if gain == 0 and record.results[0].answer != record.results[1].answer]
    sections = [
        section("Better in A", [record for record, gain in gains if gain > 0], dataset.folder),
        section("Better in B", [record for record, gain in gains if gain < 0], dataset.folder),
        section("Other words, the same score", same, dataset.folder),
    ]
    counts = (found.first_better, found.second_better)
    rows = [
        package_row(letter, name, score_figures(records, dataset.metric, package=i)[0], counts[i])
        for i, (letter, name) in enumerate(zip("AB", names, strict=True))
    ]
    differ = sum(counts)
    whole = PAGE.substitute(
        title=f"Two packages on {escape(dataset.name)}",
        about=f"{len(records)} items. One package is better in {differ} of them.",
        metric=escape(dataset.metric.title),
        rows="\n".join(rows),
        test=f"McNemar's exact test: p = {found.p_value:.3g}. That is how probable it is that two packages that are "
        f"equally good divide the {differ} items at least as unevenly.",
        sections="\n".join(filter(None, sections)),
    )
    return whole.encode("utf-8", "backslashreplace").decode()  # JSON can have half of a character, a file cannot


def package_row(letter: str, name: str, figure: Figure, better: int) -> str:
    """Return the row of a package in the table."""
    value = "none" if figure.value is None else f"{figure.value:.1%}"
    interval = "" if figure.low is None or figure.high is None else f"{figure.low:.1%} to {figure.high:.1%}"
    cells = "".join(f'<td class="number">{cell}</td>' for cell in (value, interval, better))
    return f"<tr><th>{letter}</th><td>{escape(name)}</td>{cells}</tr>"


def section(title: str, records: Sequence[Record], folder: Path) -> str:
    """Return a section that shows items, or "" for none."""
    if not records:
        return ""
    shown = records[:MOST_ITEMS]
    rest = f'<p class="faint">The first {MOST_ITEMS} of {len(records)}.</p>\n' if len(records) > len(shown) else ""
    items = "\n".join(article(record, folder) for record in shown)
    return f'<h2>{title}: {len(records)}</h2>\n{rest}<div class="items">\n{items}\n</div>'


def article(record: Record, folder: Path) -> str:
    """Return an item: its image, its question, the answers that count, and those of both packages."""
    lines = [("expected", escape(" / ".join(dict.fromkeys(record.expected))), "")]
    best = max(result.score for result in record.results)
    lines += [(letter, answer(it), _style(it, best)) for letter, it in zip("AB", record.results, strict=True)]
    if record.float_answer is not None:
        lines.append(("float", escape(record.float_answer), ""))
    listed = "".join(f'<dt>{name}</dt><dd class="{style}">{text}</dd>' for name, text, style in lines)
    kind = f" · {escape(record.kind)}" if record.kind else ""
    return (
        f"<article>{picture(record, folder)}<div>\n"
        f'<p class="question">{escape(record.question)}</p>\n<dl>{listed}</dl>\n'
        f'<p class="faint">{escape(record.id)}{kind}</p>\n</div></article>'
    )


def answer(result: Result) -> str:
    """Return a package's answer, with its score where that is neither 0 nor 1."""
    text = escape(result.answer) or "<em>nothing</em>"
    return text if result.score in (0.0, 1.0) else f"{text} ({result.score:.2f})"


def _style(result: Result, best: float) -> str:
    return "good" if result.score > 0 and result.score == best else "bad"


def picture(record: Record, folder: Path) -> str:
    """Return an item's image, scaled down and inside the page, or "" where there is none."""
    if not record.image:
        return ""
    try:
        image = load_image(folder / record.image)
    except ImageError:  # removed since it was asked about
        return ""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image.transpose(1, 2, 0))
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}">'
