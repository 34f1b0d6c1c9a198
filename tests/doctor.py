"""What ``llava doctor`` prints."""

from __future__ import annotations

import pytest

from llava_export.cli import doctor


def examine(path: object, *flags: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code of ``llava doctor``, and what it prints to a wide terminal, with single spaces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "500")  # so that no cell of a table is folded
        code = doctor.run(doctor.build_parser().parse_args([str(path), *flags]))
    return code, " ".join(capsys.readouterr().out.split())
