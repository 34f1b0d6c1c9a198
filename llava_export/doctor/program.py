"""A program against the runtime that is installed here: versions, operators, backends, memory, and whether it loads."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from llava_export.doctor.findings import Finding, broken, doubtful, note
from llava_export.pte.preflight import RUNNER
from llava_export.pte.read.types import Method, PteFile
from llava_export.pte.report import unexplained_operators
from llava_export.system import available_memory, readable_size
from llava_runner import contract
from llava_runner.contract import METHODS, MODEL_CARD, ModelCard
from llava_runner.errors import PackageError

DELEGATED = (contract.VISION_ENCODER, contract.TEXT_DECODER)  # the token embedding is one lookup
MAX_NAMED = 4  # operators in a finding, before it counts the rest
EXPORT = "Export the model again."


def card_in(found: PteFile) -> ModelCard | Finding:
    """Return the model card of a program, or why there is none that can be used."""
    names = {method.name for method in found.methods} | found.constants.keys()
    try:
        card = ModelCard.from_json(str(found.constants[MODEL_CARD])) if MODEL_CARD in found.constants else None
    except PackageError as error:
        return broken(str(error), "" if "Export" in str(error) else EXPORT)
    missing = sorted({*(card.methods if card else METHODS), MODEL_CARD} - names)
    if card is None or missing:
        return broken(
            f"it is a program of another kind: it has no method {', '.join(missing)}",
            "Export the model with llava export, or look inside with llava inspect.",
        )
    return card


def check_versions(card: ModelCard, versions: Mapping[str, str]) -> Iterator[Finding]:
    """Yield where a program was made by other versions than those installed. ``versions`` are the manifest's."""
    here = installed("executorch")
    if here != card.executorch_version:
        yield doubtful(
            f"it was exported for ExecuTorch {card.executorch_version}, and {here or 'none'} is installed here",
            f"Install executorch=={card.executorch_version}"
            + (f", or export the model again with {here}." if here else "."),
        )
    ours, theirs = installed("llava_export"), versions.get("llava_export")
    if theirs is not None and ours != theirs:
        yield note(f"it was exported by llava_export {theirs}, and {ours} is installed here")


def installed(distribution: str) -> str:
    """Return the version of a distribution that is installed, or ""; of Python for ``python``."""
    if distribution == "python":
        return platform.python_version()
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def check_operators(
    methods: Collection[Method], *, operators: Collection[str], backends: Collection[str]
) -> Iterator[Finding]:
    """Yield what methods need and a runtime with these operators and backends lacks, and what runs slowly."""
    for method in methods:
        missing = [name for name in method.outside if name not in operators]
        if missing:
            yield broken(
                f"{method.name} needs operators that the runtime here lacks: {_named(missing)}",
                "Install the executorch of requirements.txt, or export the model again with the one that is here.",
            )
        if absent := sorted(set(method.delegates) - set(backends)):
            yield broken(
                f"{method.name} needs the backend {', '.join(absent)}, which the runtime here lacks",
                "Install an executorch that has it, or export the model again with llava export, for XNNPACK.",
            )
        if method.name in DELEGATED and not method.delegates:
            yield doubtful(
                f"{method.name} delegates nothing: plain operators compute all of it, slowly",
                "Export the model again with this version of llava export; --report shows what is delegated.",
            )
        elif unexpected := [name for name in unexplained_operators(method.outside) if name not in missing]:
            yield doubtful(
                f"{method.name} computes {_named(unexpected)} outside of XNNPACK, slowly",
                "Export the model again without --partitioners 1; --report shows what is delegated.",
            )


def needed_memory(found: PteFile) -> tuple[int, int]:
    """Return the bytes that running a program takes: what must stay in memory, and that with all weights."""
    fixed = RUNNER + sum(method.planned_bytes for method in found.methods)
    return fixed, fixed + found.bytes


def check_memory(found: PteFile) -> Iterator[Finding]:
    """Yield that this machine has too little memory for a program."""
    (fixed, whole), free = needed_memory(found), available_memory()
    if free is None or free >= whole:
        return
    text = f"running it takes {readable_size(whole)} of memory, and {readable_size(free)} are free"
    remedy = "End other programs, or export with a smaller --max-context-len or recipe."
    if free < fixed:
        yield broken(f"{text}: {readable_size(fixed)} without its weights", remedy)
    else:
        yield doubtful(text, f"{remedy} llava_main maps packed weights, which the system can drop.")


def _named(operators: list[str]) -> str:
    """Return the first operators as text, and how many more there are."""
    more = len(operators) - MAX_NAMED
    return ", ".join(operators[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
