"""Console script ``test_pte``: does a program still say what its checkpoint said?

Files are checked against the manifest, then the golden picture and prompt go through the program, and each stage is
compared with what the float model gave: image features, and the logits of every token of its greedy answer, the program
being fed the float model's tokens so that one slip does not hide the rest.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava_runner import contract
from llava_runner.contract import Manifest
from llava_runner.errors import PackageError, exit_cleanly

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from llava_export.package.golden import GoldenRecord
    from llava_export.recipe import Thresholds

DEFAULT_QUESTION = "What is in the image?"
# A token is sure when the float model gives it this much probability; there the program must choose it too.
SURE = 0.9


@dataclass(frozen=True)
class Comparison:
    """One stage of the program against the float model: ``kl`` in nats; the last five only where there are logits."""

    stage: str
    cosine: float
    max_error: float
    top1: bool | None = None
    top5: float | None = None
    kl: float | None = None
    sure: bool = False

    def failures(self, thresholds: Thresholds) -> list[str]:
        """What is worse than allowed, in words."""
        found = []
        if not self.cosine >= thresholds.cosine:
            found.append(f"{self.stage}: cosine {self.cosine:.4f} is below {thresholds.cosine}")
        if self.kl is not None and not self.kl <= thresholds.kl:
            found.append(f"{self.stage}: KL {self.kl:.3f} is above {thresholds.kl}")
        if self.sure and not self.top1:
            found.append(f"{self.stage}: another token, where the float model was sure")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="test_pte",
        description="Compare an exported program with the float model it came from, by the golden record beside it.",
        epilog="exit code: 0 the same within the recipe's thresholds, 1 different, 2 cannot be run",
    )
    parser.add_argument(
        "program", type=Path, metavar="PTE", help="the program, its manifest and golden record beside it"
    )
    parser.add_argument(
        "image", nargs="?", type=Path, metavar="IMAGE", help="also answer a question about this picture"
    )
    parser.add_argument("--prompt", default=DEFAULT_QUESTION, help="the question about IMAGE (default: %(default)s)")
    arguments = parser.parse_args()
    exit_cleanly(lambda: run(arguments.program, image=arguments.image, prompt=arguments.prompt))


def run(program: Path, *, image: Path | None, prompt: str) -> int:
    """Print the comparison; returns the exit code. Raises ``UserError`` when it cannot be made."""
    from rich.console import Console

    console = Console()
    manifest = read_manifest(program)
    if contract.golden_path(program).name not in manifest.files:
        raise PackageError(f"{program} was exported with --no-golden, so there is nothing to compare it with")
    changed = changed_files(program, manifest)
    for name in changed:
        console.print(f"[red]{name} is not the file that was exported: its SHA-256 differs[/]", highlight=False)
    if changed:
        console.print("\n[bold red]FAIL[/]: the package was changed after its export")
        return 1
    comparisons = compare(program)
    failures = judge(comparisons, manifest)
    print_comparisons(console, comparisons, manifest)
    for failure in failures:
        console.print(f"[red]{failure}[/]", highlight=False)
    if image is not None:
        print_answer(console, program, image=image, prompt=prompt)
    console.print("\n[bold red]FAIL[/]: not the model it was exported from" if failures else "\n[bold green]PASS[/]")
    return 1 if failures else 0


def read_manifest(program: Path) -> Manifest:
    """The manifest beside a program. Raises ``PackageError``."""
    if not program.is_file():
        raise PackageError(f"{program} does not exist")
    path = contract.manifest_path(program)
    if not path.is_file():
        raise PackageError(f"{path} is missing: only a package with its manifest can be checked")
    manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    if manifest.program != program.name:
        raise PackageError(f"{path} is the manifest of {manifest.program}, not of {program.name}")
    return manifest


def changed_files(program: Path, manifest: Manifest) -> list[str]:
    """Files of the package that differ from the manifest. Raises ``PackageError`` for missing and truncated ones."""
    from llava_export.package.manifest import file_record

    for name, recorded in manifest.files.items():
        path = program.parent / name
        if not path.is_file():
            raise PackageError(f"{path} is missing from the package")
        if path.stat().st_size < recorded.bytes:
            raise PackageError(f"{path} is truncated: {path.stat().st_size} of {recorded.bytes} bytes")
    return [name for name, recorded in manifest.files.items() if file_record(program.parent / name) != recorded]


def compare(program_path: Path) -> list[Comparison]:
    """Run the golden record through the program. Raises ``PackageError`` when the two do not fit together."""
    import torch

    from llava_export.package.golden import GoldenRecord
    from llava_runner.program import Program

    golden = GoldenRecord.load(contract.golden_path(program_path))
    program = Program.open(program_path)
    _check_sizes(golden, program.card)
    features = program.encode_image(golden.image.numpy())
    comparisons = [compare_features(features, golden.features)]
    before, after = program.embed(golden.ids_before.tolist()), program.embed(golden.ids_after.tolist())
    rows, position = torch.cat([before, features, after], dim=1), 0
    for i, expected in enumerate(golden.logits):
        stage = "prefill" if i == 0 else f"token {i + 1}"
        comparisons.append(compare_logits(program.decode(rows, position=position), expected, stage=stage))
        position += rows.shape[1]
        rows = program.embed([int(golden.tokens[i])])
    return comparisons


def compare_features(found: torch.Tensor, expected: torch.Tensor) -> Comparison:
    """Both of the same number of elements, any shape."""
    found, expected = found.flatten().double(), expected.flatten().double()
    return Comparison("image features", _cosine(found, expected), float((found - expected).abs().max()))


def compare_logits(found: torch.Tensor, expected: torch.Tensor, *, stage: str) -> Comparison:
    """Logits ``[vocab_size]`` of both."""
    found, expected = found.double(), expected.double()
    expected_log, found_log = expected.log_softmax(0), found.log_softmax(0)
    best_found, best_expected = set(found.topk(5).indices.tolist()), set(expected.topk(5).indices.tolist())
    return Comparison(
        stage,
        cosine=_cosine(found, expected),
        max_error=float((found - expected).abs().max()),
        top1=bool(found.argmax() == expected.argmax()),
        top5=len(best_found & best_expected) / 5,
        kl=float((expected_log.exp() * (expected_log - found_log)).sum()),
        sure=bool(expected_log.max().exp() >= SURE),
    )


def judge(comparisons: list[Comparison], manifest: Manifest) -> list[str]:
    """Everything that fails the thresholds of the manifest's recipe."""
    from llava_export.recipe import Recipe

    thresholds = Recipe(**manifest.card.recipe).thresholds
    return [failure for comparison in comparisons for failure in comparison.failures(thresholds)]


def print_comparisons(console: Console, comparisons: list[Comparison], manifest: Manifest) -> None:
    from importlib.metadata import version

    from rich.table import Table

    card = manifest.card
    console.print(
        f"{manifest.program}: {card.source}, recipe {card.recipe['name']}, {len(manifest.files)} files intact"
    )
    if version("executorch") != card.executorch_version:
        console.print(
            f"[yellow]exported with ExecuTorch {card.executorch_version}, run with {version('executorch')}[/]",
            highlight=False,
        )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    for heading in ("cosine", "max error", "top-1", "top-5", "KL"):
        table.add_column(heading, justify="right")
    for row in comparisons:
        cells = [f"{row.cosine:.5f}", f"{row.max_error:.4f}"]
        if row.kl is not None:
            cells += ["same" if row.top1 else "other", f"{row.top5:.0%}", f"{row.kl:.5f}"]
        table.add_row(row.stage, *cells)
    console.print(table)


def print_answer(console: Console, program: Path, *, image: Path, prompt: str) -> None:
    from llava_runner.session import Session

    answer = "".join(Session.load(program).generate(image, prompt))
    console.print(f"\n[dim]{image}:[/] {prompt}", highlight=False)
    console.print(answer.strip(), markup=False, highlight=False, soft_wrap=True)


def _check_sizes(golden: GoldenRecord, card: contract.ModelCard) -> None:
    expected = {"features": (card.num_image_tokens, card.hidden_size), "logits": (len(golden.tokens), card.vocab_size)}
    for name, shape in expected.items():
        if tuple(getattr(golden, name).shape) != shape:
            raise PackageError(
                f"the golden record is of another model: its {name} are {list(getattr(golden, name).shape)}, "
                f"the program's {list(shape)}"
            )


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()).clamp_min(1e-30))


if __name__ == "__main__":
    main()
