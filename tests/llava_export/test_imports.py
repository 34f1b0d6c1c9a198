"""The import rules of the design, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPORTER = ROOT / "llava_export"
RUNNER = ROOT / "runner" / "llava_runner"

# Each part of llava_export may import those to the right of it, never those to the left.
LAYERS = (
    ("export", "verify", "verify_gguf", "surgery", "inspect", "benchmark"),
    ("pipeline", "gguf_pipeline"),
    ("targets", "package", "preflight"),
    ("reference", "stages", "background"),
    ("checkpoint",),
    ("families", "recipe"),
    ("models",),
    ("config", "builtin", "memory"),
    ("errors",),
)
LAYER_OF = {part: i for i, parts in enumerate(LAYERS) for part in parts}
RUNTIME_PACKAGES = {"executorch", "torch", "numpy", "PIL", "sentencepiece", "llava_runner"}


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def part_of(path: Path) -> str | None:
    name = path.relative_to(EXPORTER).parts[0].removesuffix(".py")
    return None if name == "__init__" else name


@pytest.mark.parametrize("path", sources(EXPORTER), ids=lambda path: str(path.relative_to(ROOT)))
def test_exporter_imports_point_one_way(path):
    part = part_of(path)
    if part is None:
        return
    for module in imports(path):
        name = module.split(".")
        if name[0] == "llava_export" and len(name) > 1 and name[1] != part:
            assert LAYER_OF[name[1]] > LAYER_OF[part], f"{part} may not import {name[1]}"


@pytest.mark.parametrize("path", sources(RUNNER), ids=lambda path: str(path.relative_to(ROOT)))
def test_runner_needs_only_its_own_packages(path):
    foreign = {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names) - {"__future__"}
    assert foreign <= RUNTIME_PACKAGES


def test_models_know_torch_and_config_alone():
    for path in sources(EXPORTER / "models"):
        for module in imports(path):
            assert module.split(".")[0] in sys.stdlib_module_names | {"torch"} or module.startswith(
                ("llava_export.models", "llava_export.config")
            ), f"{path.name} imports {module}"


def test_only_the_pte_target_knows_executorchs_compiler():
    for path in sources(EXPORTER):
        if path.parent.name != "targets":
            assert not any(m.startswith(("executorch.exir", "executorch.backends")) for m in imports(path)), path


def test_nothing_needs_transformers_to_export():
    for path in sources(EXPORTER):
        assert not any(module.split(".")[0] == "transformers" for module in imports(path)), path


@pytest.mark.parametrize(
    "module", ["llava_export.export", "llava_export.verify", "llava_export.inspect", "llava_runner"]
)
def test_help_is_instant(module):
    """No heavy import before the arguments are parsed."""
    script = (
        f"import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        f"except SystemExit: print([m for m in ('torch', 'executorch', 'torchao', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip().endswith("[]"), done.stdout[-300:]
