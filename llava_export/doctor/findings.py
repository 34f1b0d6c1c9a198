"""What an examination returns: what is used from where, and what is wrong or doubtful, with remedies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any


class Severity(IntEnum):
    """How bad a finding is. The value is the exit code of a command that has found nothing worse."""

    NOTE = 0  # worth knowing, and nothing is wrong
    DOUBTFUL = 1  # it can be used, perhaps not as it was meant
    BROKEN = 2  # it cannot be used


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or doubtful. ``remedy`` is a sentence; "" where ``what`` says it already."""

    severity: Severity
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Fact:
    """One thing that is used: its name, what it is, and ``source``, where it is from ("" where that is plain)."""

    name: str
    value: str
    source: str = ""


@dataclass(frozen=True)
class Report:
    """The result of an examination. ``kind`` says in words what the subject is."""

    subject: str
    kind: str
    facts: tuple[Fact, ...]
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, subject: str, kind: str, *, facts: Iterable[Fact] = (), findings: Iterable[Finding] = ()) -> Report:
        """Return a report with the worst findings first."""
        return cls(subject, kind, tuple(facts), tuple(sorted(findings, key=lambda it: -it.severity)))

    @property
    def severity(self) -> Severity:
        """The severity of the worst finding."""
        return max((finding.severity for finding in self.findings), default=Severity.NOTE)

    def to_dict(self) -> dict[str, Any]:
        """Return the report, ready for JSON."""
        findings = [{**asdict(finding), "severity": finding.severity.name.lower()} for finding in self.findings]
        return {**asdict(self), "findings": findings, "exit_code": int(self.severity)}


def note(what: str, remedy: str = "") -> Finding:
    """Return something that is worth knowing."""
    return Finding(Severity.NOTE, what, remedy)


def doubtful(what: str, remedy: str = "") -> Finding:
    """Return something that may not be as it was meant."""
    return Finding(Severity.DOUBTFUL, what, remedy)


def broken(what: str, remedy: str = "") -> Finding:
    """Return something that cannot be used."""
    return Finding(Severity.BROKEN, what, remedy)
