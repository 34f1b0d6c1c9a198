"""Verifies a package: does its program still answer as its checkpoint did?

The files are checked against the manifest. Then the image and the prompt of the golden record go through the program,
and each stage is compared with the float model's: the image features, and the logits of every token of its greedy
answer. The program reads the float model's tokens, not its own, so that one wrong token does not hide the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from llava_export.pte.golden import GoldenRecord, question_rows
from llava_export.pte.package.manifest import file_record
from llava_export.recipe import AWQ_GPTQ, Recipe, Thresholds
from llava_runner import contract
from llava_runner.contract import Manifest
from llava_runner.documents import MAX_BYTES
from llava_runner.errors import PackageError, UserError
from llava_runner.model import Model, greedy
from llava_runner.program import Program

# Where the float model gives a token this much probability, the program must choose the same one.
CONFIDENT = 0.9


@dataclass(frozen=True)
class Comparison:
    """One stage of the program, compared with the float model's.

    ``kl`` is the Kullback-Leibler divergence in nats. The last four are None or False where there are no logits.
    """

    stage: str
    cosine: float
    max_error: float
    top1: bool | None = None
    top5: float | None = None
    kl: float | None = None
    is_confident: bool = False

    def failures(self, thresholds: Thresholds) -> list[str]:
        """Return what is worse than the thresholds allow, in words. ``answer_failures`` judges the KL."""
        found = []
        if not self.cosine >= thresholds.cosine:
            found.append(f"{self.stage}: cosine {self.cosine:.4f} is below {thresholds.cosine}")
        if self.is_confident and not self.top1:
            found.append(f"{self.stage}: another token, where the float model was confident")
        return found


def read_manifest(program: Path) -> Manifest:
    """Return the manifest of a program. Raises ``PackageError`` if either is missing or they do not fit together."""
    if not program.is_file():
        raise PackageError(f"{program} does not exist")
    path = contract.manifest_path(program)
    if not path.is_file():
        raise PackageError(f"{path} is missing: only a package with its manifest can be verified")
    try:
        with path.open("rb") as file:
            manifest = Manifest.from_json(file.read(MAX_BYTES + 1))
        Recipe.from_dict(manifest.card.recipe)
    except UserError as error:
        raise PackageError(f"{path}: {error}") from error
    if manifest.program != program.name:
        raise PackageError(f"{path} is the manifest of {manifest.program}, not of {program.name}")
    return manifest


def changed_files(program: Path, manifest: Manifest) -> list[str]:
    """Return the files whose SHA-256 differs from the manifest's.

    Raises ``PackageError`` for missing and truncated files, and for a package without a golden record or with a changed
    one: then there is nothing to compare the program with.
    """
    golden = contract.golden_path(program).name
    if golden not in manifest.files:
        raise PackageError(f"{program} was exported with --no-golden, so there is nothing to compare it with")
    for name, recorded in manifest.files.items():
        path = program.parent / name
        if not path.is_file():
            raise PackageError(f"{path} is missing from the package")
        if path.stat().st_size < recorded.bytes:
            raise PackageError(f"{path} is truncated: {path.stat().st_size} of {recorded.bytes} bytes")
    changed = [name for name, recorded in manifest.files.items() if file_record(program.parent / name) != recorded]
    if golden in changed:
        raise PackageError(f"{program.parent / golden} is not the file that was exported: its SHA-256 differs")
    return changed


def compare(program_path: Path, manifest: Manifest) -> list[Comparison]:
    """Run the golden record's question through the program. Return a comparison for each stage, in order.

    Raises ``PackageError`` when record, program and manifest do not fit together.
    """
    golden = GoldenRecord.load(contract.golden_path(program_path))
    program = Program.open(program_path)
    if program.card.recipe != manifest.card.recipe:  # which says how far the program may be off
        raise PackageError(f"the recipe in {contract.manifest_path(program_path)} is not that of {program_path}")
    golden.check(program.card)
    return list(_compare(program, golden))


def agreement(program_path: Path) -> str:
    """Return for people which library read the golden record's question as the export did. Raises ``PackageError``."""
    golden = GoldenRecord.load(contract.golden_path(program_path))
    by = f"read as by {golden.agreed}" if golden.agreed else "which no other library has read"
    return f"question {golden.prompt!r}, {by}"


def judge(comparisons: list[Comparison], manifest: Manifest) -> list[str]:
    """Return everything that fails the thresholds of the manifest's recipe, in words."""
    recipe = Recipe.from_dict(manifest.card.recipe)
    found = [failure for it in comparisons if it.kl is None for failure in it.failures(recipe.feature_thresholds)]
    return found + answer_failures(_tokens(comparisons), recipe.thresholds)


def answer_failures(tokens: Sequence[Comparison], thresholds: Thresholds) -> list[str]:
    """Return what is worse in an answer than the thresholds allow, in words.

    The KL divergence is the mean over its tokens: a small model may be unsure of one, and off by more there.
    """
    found = [failure for token in tokens for failure in token.failures(thresholds)]
    kl = fmean(token.kl or 0.0 for token in tokens) if tokens else 0.0
    if not kl <= thresholds.kl:
        found.append(f"KL {kl:.3f} is above {thresholds.kl}")
    return found


def advice(comparisons: list[Comparison], recipe: Recipe) -> str | None:
    """Return what helps where 4 bits without samples are too few for a model; None where that is not the reason."""
    tokens = _tokens(comparisons)
    if recipe.calibrates or recipe.text != "8da4w" or not answer_failures(tokens, recipe.thresholds):
        return None
    return (
        f"4 bits may be too few for this model where no samples are read: an export with --algorithm {AWQ_GPTQ} keeps "
        "more of it, and one with --recipe 8da8w nearly all"
    )


def _tokens(comparisons: list[Comparison]) -> list[Comparison]:
    """Return the comparisons of logits. Where the model sees images, that of their features goes before them."""
    return [it for it in comparisons if it.kl is not None]


def compare_features(found: Tensor, expected: Tensor) -> Comparison:
    """Return the comparison of image features. Both must have the same number of elements, in any shape."""
    found, expected = found.flatten().double(), expected.flatten().double()
    return Comparison("image features", _cosine(found, expected), float((found - expected).abs().max()))


def compare_logits(found: Tensor, expected: Tensor, *, stage: str) -> Comparison:
    """Return the comparison of logits ``[vocab_size]`` in stage ``stage``."""
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
        is_confident=bool(expected_log.max().exp() >= CONFIDENT),
    )


def _compare(model: Model, golden: GoldenRecord) -> Iterator[Comparison]:
    features, rows = question_rows(model, golden.image.numpy(), golden.ids_before.tolist(), golden.ids_after.tolist())
    if features.numel():
        yield compare_features(features, golden.features)
    tokens = iter(golden.tokens.tolist())
    answer = greedy(model, rows, max_tokens=len(golden.tokens), choose=lambda _: next(tokens))
    for i, ((_, found), expected) in enumerate(zip(answer, golden.logits, strict=True)):
        yield compare_logits(found, expected, stage="prefill" if i == 0 else f"token {i + 1}")


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()).clamp_min(1e-30))
