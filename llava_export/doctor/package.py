"""Examines a package: its files, the program, the tokenizer, the packed weights, and the machine that it is on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from llava_export.checkpoint.images import described
from llava_export.checkpoint.prompt import example_turn
from llava_export.doctor.files import COPY, check_files, damaged_files, left_over, open_manifest
from llava_export.doctor.findings import Fact, Finding, Report, Severity, broken, doubtful
from llava_export.doctor.packed import check_packed, packed_files
from llava_export.doctor.program import card_in, check_memory, check_operators, check_versions, needed_memory
from llava_export.doctor.tokenizer import check_golden, check_tokenizers, open_golden, tokenizers_in
from llava_export.doctor.words import ends_text, sampling_text
from llava_export.pte.golden import GoldenRecord
from llava_export.pte.read.program import read_pte
from llava_export.pte.read.types import PteFile
from llava_export.recipe import recipe_text
from llava_export.system import available_memory, readable_size
from llava_runner.contract import Manifest, ModelCard, golden_path
from llava_runner.errors import PackageError, UserError
from llava_runner.program import Program, runtime_names
from llava_runner.program_file import find_program, structure_sha256

KIND = "package for ExecuTorch"


def is_package(path: Path) -> bool:
    """Return whether a path is that of a program, or of a folder with one or with what was beside one."""
    if not path.is_dir():
        return path.suffix == ".pte"
    patterns = ("*.pte", "*.golden")
    return not (path / "config.json").exists() and any(any(path.glob(pattern)) for pattern in patterns)


def examine_package(path: Path) -> Report:
    """Return what is used of a package, and what is wrong with it."""
    try:
        program = find_program(path)
        structure = structure_sha256(program)
        found = read_pte(program)
    except PackageError as error:
        remedy = "" if any(words in str(error) for words in ("does not exist", "programs:", "Copy")) else COPY
        return Report.of(str(path), KIND, findings=[broken(str(error), remedy)])
    manifest, problem = open_manifest(program)
    findings = [problem] if problem else []
    damaged = damaged_files(program, manifest) if manifest else {}
    findings += check_files(program, manifest, structure=structure, damaged=damaged) if manifest else []
    findings += left_over(program)
    card = card_in(found)
    if isinstance(card, Finding):
        return Report.of(str(path), KIND, facts=_program_facts(program, found), findings=[*findings, card])
    golden, problem = open_golden(program, card)
    if problem and golden_path(program).name not in damaged:  # which has been told
        findings.append(problem)
    findings += _misfits(program, card, manifest=manifest, golden=golden, damaged=damaged)
    findings += _runtime_findings(program, found, is_whole=not _has_broken(findings))
    findings += check_packed(program, structure=structure)
    facts = [
        *_program_facts(program, found),
        *_model_facts(program, card),
        *_machine_facts(program, found, card, golden=golden),
    ]
    return Report.of(str(path), KIND, facts=facts, findings=findings)


def _misfits(
    program: Path,
    card: ModelCard,
    *,
    manifest: Manifest | None,
    golden: GoldenRecord | None,
    damaged: Collection[str],
) -> Iterator[Finding]:
    """Yield what does not fit the program: versions, manifest, golden record, tokenizers."""
    yield from check_versions(card, manifest.versions if manifest else {})
    if manifest is not None and manifest.card != card:
        yield doubtful("the manifest describes another model than the program's own card does", COPY)
    if golden is not None:
        yield from check_golden(card, golden)
    yield from check_tokenizers(program, card, golden=golden, damaged=damaged)


def _runtime_findings(program: Path, found: PteFile, *, is_whole: bool) -> Iterator[Finding]:
    """Yield what the runtime and the machine lack. If ``is_whole``, the program is loaded."""
    try:
        operators, backends = runtime_names()
    except (ImportError, OSError) as error:
        yield broken(f"ExecuTorch's runtime cannot be loaded here: {error}", "Install what requirements.txt has.")
        return
    findings = [*check_operators(found.methods, operators=operators, backends=backends), *check_memory(found)]
    yield from findings
    if is_whole and max((it.severity for it in findings), default=Severity.NOTE) < Severity.BROKEN:
        free = available_memory()
        if free is not None and free < needed_memory(found)[1]:
            return
        try:
            Program.open(program)
        except UserError as error:
            yield broken(str(error), "Export the model again with the ExecuTorch that is installed here.")


def _has_broken(findings: list[Finding]) -> bool:
    """Return whether something is broken."""
    return any(finding.severity == Severity.BROKEN for finding in findings)


def _program_facts(program: Path, found: PteFile) -> Iterator[Fact]:
    """Yield what the program is, and what each method delegates."""
    yield Fact("program", f"{program.name}, {readable_size(found.bytes)}", f"ExecuTorch {found.identifier}")
    for method in found.methods:
        delegates = " and ".join(f"{count} {name}" for name, count in method.delegates.items()) or "nothing"
        yield Fact(method.name, f"delegates {delegates}; operators outside: {method.outside.total()}", program.name)


def _model_facts(program: Path, card: ModelCard) -> Iterator[Fact]:
    """Yield what runners are told about the model."""
    yield Fact("model", f"{card.source}, {card.family}", "model card")
    yield Fact("recipe", recipe_text(card.recipe, has_vision=card.num_image_tokens > 0), "model card")
    if not card.num_image_tokens:
        yield Fact("images", "none: a language model, which can draft for another", "model card")
    else:
        yield Fact("prompt", repr(example_turn(card.prompt)), card.prompt_source)
        images = described(
            card.image_aspect_ratio, size=card.image_size, resize=card.image_resize, resample=card.image_resample
        )
        yield Fact("images", f"{images}; {card.num_image_tokens} positions each", "model card")
    spelled = {token.id: token.content for token in card.tokenizer.added_tokens}
    files = " and ".join(path.name for path in tokenizers_in(program.parent)) or "none"
    tokens = f"{card.tokenizer_vocab_size} tokens, {len(card.tokenizer.added_tokens)} of them added"
    yield Fact("tokenizer", tokens, files)
    yield Fact(
        "begin and ends", ends_text(card.bos_id, card.eos_ids, spelled=lambda i: spelled.get(i, "")), "model card"
    )
    yield Fact("sampling", sampling_text(card.generation), "model card (Session)")


def _machine_facts(program: Path, found: PteFile, card: ModelCard, *, golden: GoldenRecord | None) -> Iterator[Fact]:
    """Yield what running the program takes here, and what it can be compared with."""
    free = available_memory()
    here = "unknown" if free is None else readable_size(free)
    yield Fact("memory", f"{readable_size(needed_memory(found)[1])} to run; {here} free here", "the program's plan")
    yield Fact("context", f"{card.max_context_len} positions, {card.max_seq_len} in one call", "model card")
    read = f"read alike by {golden.agreed}" if golden and golden.agreed else "read by no other library"
    yield Fact("golden question", f"{len(golden.tokens)} tokens of answer; {read}" if golden else "none")
    packed = ", ".join(path.name for path in packed_files(program)) or "none"
    yield Fact("packed weights", packed, "llava_main")
