"""The folder that ``runner/build.sh phone`` packs: it runs where nothing of Linux but the kernel is to be found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_runner.session import Session
from tests.integration.conftest import lacking
from tests.integration.llava_main import QUESTION
from tests.integration.test_runner_scripts import build_library

ROOT = Path(__file__).parents[2]
LOADER = "ld-linux-aarch64.so.1"
NOBODY = 65534
# In place of the packed loader: the same under qemu, which has no folder of libraries for ARM to look into.
EMULATED = '#!/bin/sh\nexec qemu-aarch64 -cpu cortex-a76 -L /nonexistent "${0%/*}/loader" "$@"\n'
# In place of the packed loader: shows what it was called with.
SHOWN = '#!/bin/sh\nprintf "%s\\n" "$0" "$@" "preload=$LD_PRELOAD"\n'


@pytest.fixture
def anywhere() -> Iterator[Path]:
    """A folder that every user can enter, with a name that is hard on scripts. ``uname`` beside it tells of a phone."""
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        script(Path(base) / "uname", "#!/bin/sh\necho aarch64\n")
        path = Path(base) / "some: folder; $ORIGIN"
        path.mkdir()
        yield path


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def with_loader(build: Path, folder: Path, loader: str) -> Path:
    """Copy the packed folder, with a script in place of its loader. Return the copy's ``llava_main``."""
    shutil.copytree(build / "llava", folder / "llava")
    lib = folder / "llava/lib"
    (lib / LOADER).rename(lib / "loader")
    script(lib / LOADER, loader)
    return folder / "llava/llava_main"


@pytest.mark.parametrize("page_size", [4096, 16384])
def test_it_answers_with_nothing_else_of_this_machine(page_size, phone_build, tiny_package, anywhere):
    program = with_loader(phone_build, anywhere, EMULATED)
    package = anywhere / "package"
    shutil.copytree(tiny_package.folder, package, ignore=shutil.ignore_patterns("*.packed"))
    with Session.load(tiny_package.program) as session:
        expected = session.ask(package / "image.png", QUESTION)
    log = anywhere.parent / "calls"
    log.touch()
    log.chmod(0o666)
    subprocess.run(["chmod", "-R", "a+rX,a-w", anywhere], check=True)
    environment = {
        "PATH": f"{anywhere.parent}:/usr/bin:/bin",
        "QEMU_PAGESIZE": str(page_size),
        "QEMU_STRACE": "1",
        "QEMU_LOG_FILENAME": str(log),
    }
    flags = [f"--model-path={package}", f"--image={package}/image.png", f"--prompt={QUESTION}"]
    user = NOBODY if os.geteuid() == 0 else None  # root could write
    done = subprocess.run(
        [program, *flags],
        capture_output=True,
        text=True,
        cwd="/",
        env=environment,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    subprocess.run(["chmod", "-R", "u+w", anywhere], check=True)  # so that it can be removed
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected + "\n"
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and notes[0].startswith("note: packed weights are not kept")
    assert f"{package} cannot be written to: Permission denied" in notes[0]
    # Every file that was asked for: the program's own ones, what the kernel tells, and one that every loader wants.
    asked = set(re.findall(r'"(/[^"]*)"', log.read_text(errors="replace")))
    assert len(asked) > 15
    others = {path for path in asked if not path.startswith((f"{anywhere}/", "/proc/", "/sys/"))}
    assert others == {"/etc/ld.so.preload"}


@pytest.mark.parametrize("shell", ["sh", "mksh"])
def test_any_shell_finds_the_program_from_any_folder(shell, phone_build, anywhere):
    if not shutil.which(shell):
        lacking("the test of Android's shell", f"apt-get install {shell}")
    program = with_loader(phone_build, anywhere, SHOWN)
    arguments = ['--prompt=What\'s "there"?', "", "$HOME *", "--seed", "1"]
    environment = {"PATH": f"{anywhere.parent}:{os.environ['PATH']}", "LD_PRELOAD": "/system/lib64/one.so"}
    for folder, name in ((Path("/"), str(program)), (anywhere, "llava/llava_main"), (program.parent, "llava_main")):
        command = [shell, name, *arguments]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment).stdout
        loader, *rest = shown.splitlines()
        assert (folder / loader).samefile(program.parent / "lib" / LOADER)
        assert rest[:3] == ["--inhibit-cache", "--library-path", "$ORIGIN"]
        assert (folder / rest[3]).samefile(program.parent / "lib/llava_main")
        assert rest[4:] == [*arguments, "preload="]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rm lib/ld-linux-aarch64.so.1", "lib/ld-linux-aarch64.so.1 is missing: copy the whole folder"),
        ("rm -r lib", "lib/ld-linux-aarch64.so.1 is missing: copy the whole folder"),
        ("rm lib/llava_main", "lib/llava_main is missing: copy the whole folder"),
        ("chmod -x lib/ld-linux-aarch64.so.1", "lib/ld-linux-aarch64.so.1 is not executable"),
        ("sed -i s/aarch64/armv7l/ ../../uname", "is for 64-bit ARM, and this is armv7l"),
    ],
)
def test_what_is_wrong_on_the_phone_is_told(change, message, phone_build, anywhere):
    program = with_loader(phone_build, anywhere, SHOWN)
    subprocess.run(["sh", "-c", change], cwd=program.parent, check=True)
    environment = {"PATH": f"{anywhere.parent}:{os.environ['PATH']}"}
    done = subprocess.run([program, "--version"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_the_folder_has_what_is_needed_and_no_more(phone_build):
    folder = phone_build / "llava"
    lib = {path.name for path in (folder / "lib").iterdir()}
    needed = {"llava_main", "llava_bench", LOADER}
    for path in (folder / "lib").iterdir():
        shown = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True).stdout
        needed |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", shown))
    assert lib == needed and {"libc.so.6", "libstdc++.so.6", "libexecutorch_backend_xnnpack.so"} <= lib
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 40_000_000
    licenses = {path.name for path in (folder / "licenses").iterdir()}
    packages = [line.split() for line in (folder / "licenses/packages").read_text().splitlines()]
    assert {name for name, version in packages} <= licenses and {"LGPL-2.1", "GPL-3"} <= licenses
    assert [name.split("-arm64")[0] for name, _ in packages] == ["libc6", "libgcc-s1", "libstdc++6"]
    with tarfile.open(phone_build / "llava_main-phone.tar.gz") as archive:
        names = {name for name in archive.getnames() if name.startswith("llava/lib/")}
    assert names == {f"llava/lib/{name}" for name in lib}


def packed(programs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "runner/deploy/pack_phone.sh", programs, out]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_library_that_is_missing_or_for_small_pages_stops_packing(aarch64_build, tmp_path):
    programs, out = tmp_path / "programs", tmp_path / "out"
    programs.mkdir()
    for path in aarch64_build.glob("l*"):
        if path.suffix in ("", ".so"):
            (programs / path.name).symlink_to(path)
    (out / "llava").mkdir(parents=True)
    (out / "llava/former").touch()
    library = programs / "libexecutorch_etdump.so"
    library.unlink()
    done = packed(programs, out)
    assert done.returncode == 2 and done.stderr.startswith("error: libexecutorch_etdump.so is missing: ")
    build_library(library, page_size=4096)
    done = packed(programs, out)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "libexecutorch_etdump.so: linked for memory pages of less than 16 KB" in done.stderr
    assert "-Wl,-z,max-page-size=16384" in done.stderr and "llava_main:" not in done.stderr
    library.write_text("not a library")
    done = packed(programs, out)
    assert done.returncode == 2 and "libexecutorch_etdump.so is no program and no shared library" in done.stderr
    assert [path.name for path in out.glob("llava/*")] == ["former"]  # what was packed before stays
