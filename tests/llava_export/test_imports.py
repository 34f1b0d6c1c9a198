"""The import rules of DESIGN.md, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPORTER = ROOT / "llava_export"
RUNNER = ROOT / "runner" / "llava_runner"
RUNTIME_PACKAGES = {"executorch", "torch", "numpy", "PIL", "google", "sentencepiece", "tokenizers", "llava_runner"}
SERVER_PACKAGES = {"fastapi", "starlette", "pydantic", "uvicorn", "h11", "prometheus_client", "llguidance"}

# The rooms of the exporter from top to bottom. A room may import those below it; rooms on one floor do not know each
# other. A name with a slash is a room within pte/.
FLOORS = (
    ("export",),
    ("cli",),
    ("evaluate",),
    ("doctor", "pte/against"),
    ("benchmark", "pte/verify", "pte/export", "gguf", "split"),
    ("pte/budget", "pte/build", "pte/golden"),
    ("pte/agreement", "pte/stamp"),
    ("pte/source", "pte/lower", "pte/report", "pte/plan", "pte/read", "pte/package"),
    ("pte/llama_ops", "pte/needless_passes", "pte/transposes", "pte/sharing", "pte/preflight", "pte/options"),
    ("calibration",),
    ("corpus", "reference", "staging", "stages", "streams"),
    ("checkpoint",),
    ("families", "recipe"),
    ("quantize",),
    ("models",),
    ("config", "builtin", "system"),
    ("errors",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, wherever in the file. ``from a import b`` counts as ``a.b``, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def sources(folder: Path) -> list[Path]:
    """Return all Python files below a folder."""
    return sorted(folder.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str | None:
    """Return the room of a path or module within ``llava_export``, given by its parts; None for the package itself."""
    names = [part.removesuffix(".py") for part in parts]
    if names[0] == "pte" and len(names) > 1 and names[1] != "__init__":
        return f"pte/{names[1]}"
    return names[0] if names[0] in FLOOR_OF else None


@pytest.mark.parametrize("path", sources(EXPORTER), ids=lambda path: str(path.relative_to(ROOT)))
def test_exporter_imports_point_down(path):
    room = room_of(path.relative_to(EXPORTER).parts)
    if path in (EXPORTER / "__init__.py", EXPORTER / "pte" / "__init__.py"):
        return
    assert room in FLOOR_OF, f"{path} is in no room: add it to FLOORS and to DESIGN.md"
    for module in imports(path):
        name, *parts = module.split(".")
        if name == "llava_export" and parts and (other := room_of(tuple(parts))) not in (None, room):
            assert FLOOR_OF[other] > FLOOR_OF[room], f"{room} may not import {other}"


def test_gguf_is_known_to_its_own_room_alone():
    for path in sources(EXPORTER):
        if not path.is_relative_to(EXPORTER / "gguf"):
            assert "gguf" not in {module.split(".")[0] for module in imports(path)}, path


def test_executorchs_compiler_is_known_to_pte_alone():
    compiler = ("executorch.exir", "executorch.backends", "torchao")
    for path in sources(EXPORTER):
        if not path.is_relative_to(EXPORTER / "pte"):
            found = {module for module in imports(path) if module.startswith(compiler)}
            if path.is_relative_to(EXPORTER / "quantize"):
                found = {module for module in found if not module.startswith("torchao")}
            assert not found, path


def test_terminal_library_is_known_to_what_shows_things_alone():
    """The library raises and returns; the command line prints."""
    shown = (EXPORTER / "cli", EXPORTER / "benchmark" / "show.py")
    for path in sources(EXPORTER):
        if not any(path == place or path.is_relative_to(place) for place in shown):
            found = {module.split(".")[0] for module in imports(path)}
            assert not found & {"rich", "argparse"} or path == EXPORTER / "benchmark" / "llama_cpp.py", path


def test_models_know_torch_and_config_alone():
    for path in sources(EXPORTER / "models"):
        for module in imports(path):
            assert module.split(".")[0] in sys.stdlib_module_names | {"torch"} or module.startswith(
                ("llava_export.models", "llava_export.config")
            ), f"{path.name} imports {module}"


def test_nothing_but_the_comparison_with_it_uses_transformers():
    using = [path.name for path in sources(EXPORTER) if "transformers" in {it.split(".")[0] for it in imports(path)}]
    assert using == ["processor.py"]


@pytest.mark.parametrize("path", sources(RUNNER), ids=lambda path: str(path.relative_to(ROOT)))
def test_runner_needs_only_its_own_packages(path):
    foreign = {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names) - {"__future__"}
    assert foreign <= RUNTIME_PACKAGES | (SERVER_PACKAGES if path.is_relative_to(RUNNER / "serve") else set())


def test_benchmarks_and_training_are_imported_by_no_package():
    for path in sources(EXPORTER) + sources(RUNNER):
        assert not {module.split(".")[0] for module in imports(path)} & {"benchmarks", "training", "tests"}, path


@pytest.mark.parametrize(
    "arguments",
    [
        ("llava_runner.command", "--help"),
        ("llava_runner.command", "export", "--help"),
        ("llava_runner.command", "gguf", "--help"),
        ("llava_runner.command", "verify", "--help"),
        ("llava_runner.command", "doctor", "--help"),
        ("llava_runner.command", "evaluate", "--help"),
        ("llava_runner.command", "run", "--help"),
        ("llava_runner.command", "serve", "--help"),
        ("llava_runner.command", "inspect", "--help"),
        ("llava_runner.command", "benchmark", "--help"),
        ("llava_runner.command", "split", "--help"),
        ("llava_export.export", "--help"),
        ("llava_runner", "--help"),
    ],
    ids=" ".join,
)
def test_help_is_instant(arguments):
    """No heavy import before the arguments are parsed."""
    module, *flags = arguments
    script = (
        f"import sys, runpy; sys.argv = ['x', *{flags!r}]\n"
        f"heavy = ('torch', 'executorch', 'torchao', 'rich', 'fastapi')\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        f"except SystemExit: print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip().endswith("[]"), done.stdout[-300:]
