"""The scripts of ``runner/deploy``: wrong calls, the archive that a build leaves, Android with stand-ins."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.test_llava_main_aarch64 import emulator

ROOT = Path(__file__).parents[2]
# In place of the NDK's: Debian's compiler, which is as foreign to this machine, and notes of what it was told.
TOOLCHAIN = """
include({root}/runner/deploy/aarch64.cmake)
set(ANDROID TRUE)
set(CMAKE_CXX_FLAGS_INIT "{jni}")  # an NDK's compiler finds jni.h by itself
foreach(library JPEG TIFF)  # an NDK has zlib alone
  set(CMAKE_DISABLE_FIND_PACKAGE_${{library}} TRUE)
endforeach()
set(WEBP_LIBRARY OFF)
set(PCRE2_LIBRARY OFF)
if(ANDROID_ABI)  # not where CMake only tries the compiler
  file(WRITE {notes} "${{ANDROID_ABI}} ${{ANDROID_PLATFORM}}")
endif()
"""
# In place of a phone: files go to a folder, and of a shell's commands only their text is kept.
ADB = """#!/usr/bin/env bash
phone={phone}
case $1 in
    get-state) echo device ;;
    push) cp -r "$2" "$phone/" && echo "push $(basename "$2")" >> "$phone/log" ;;
    shell)
        case $2 in
            stat*) file=${{2#stat -c %s }}; stat -c %s "$phone/$(basename "${{file%% 2>*}}")" 2> /dev/null || true ;;
            *) echo "shell $2" >> "$phone/log" ;;
        esac ;;
esac
"""


def build(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("ANDROID_NDK", "EXECUTORCH_ANDROID")}
    return subprocess.run(
        [ROOT / "runner/build.sh", *arguments], capture_output=True, text=True, env={**variables, **environment}
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["windows"], {}, "none of native, aarch64, phone, android"),
        (["android"], {}, "ANDROID_NDK is not set"),
        (["android"], {"ANDROID_NDK": "/tmp"}, "is no NDK"),
        (["android"], {"ANDROID_NDK": "{ndk}"}, "EXECUTORCH_ANDROID is not set"),
        (["android"], {"ANDROID_NDK": "{ndk}", "EXECUTORCH_ANDROID": "{ndk}"}, "holds no ExecuTorch"),
    ],
    ids=str,
)
def test_what_is_missing_is_named(arguments, environment, message, tmp_path):
    ndk = fake_ndk(tmp_path)
    done = build(*arguments, **{name: value.format(ndk=ndk) for name, value in environment.items()})
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_an_executorch_for_small_pages_of_memory_is_refused(aarch64_build, tmp_path):
    sdk = tmp_path / "sdk"
    sdk.mkdir()
    (sdk / "executorch-config.cmake").touch()
    for name in ("libexecutorch.so", "libexecutorch_backend_xnnpack.so"):
        build_library(sdk / name, page_size=4096)
    build_library(sdk / "libexecutorch_threadpool.so", page_size=16384)
    done = build("android", ANDROID_NDK=str(fake_ndk(tmp_path)), EXECUTORCH_ANDROID=str(sdk))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    named = f"error: {sdk}/libexecutorch.so {sdk}/libexecutorch_backend_xnnpack.so: linked for memory pages of less "
    assert done.stderr.startswith(named) and "-Wl,-z,max-page-size=16384" in done.stderr


def build_library(path: Path, *, page_size: int) -> None:
    """Build a library for ARM without anything in it, whose parts begin at multiples of a page."""
    compiler = "aarch64-linux-gnu-gcc -shared -nostdlib -x c /dev/null"
    subprocess.run([*compiler.split(), f"-Wl,-z,max-page-size={page_size}", "-o", path], check=True)


def fake_ndk(folder: Path) -> Path:
    path = folder / "ndk/build/cmake/android.toolchain.cmake"
    path.parent.mkdir(parents=True)
    javac = shutil.which("javac")
    headers = Path(javac).resolve().parents[1] / "include" if javac else None
    jni = f"-isystem {headers} -isystem {headers}/linux" if headers else ""
    path.write_text(TOOLCHAIN.format(root=ROOT, notes=folder / "notes", jni=jni))
    return folder / "ndk"


def test_the_android_target_is_configured_and_built(aarch64_build, tmp_path):
    (sdk,) = aarch64_build.glob("sdk-*")
    # Not optimized, for half of the time: the same compiler has optimized the same sources for aarch64.
    environment = {"ANDROID_NDK": str(fake_ndk(tmp_path)), "EXECUTORCH_ANDROID": str(sdk), "CMAKE_BUILD_TYPE": "None"}
    done = build("android", "--clean", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "notes").read_text() == "arm64-v8a android-28"
    assert (ROOT / "cmake-out/android/llava_main-android.tar.gz").exists()
    assert (ROOT / "cmake-out/android/libllava_jni.so").exists() or not shutil.which("javac")
    aligned = subprocess.run(["readelf", "-lW", ROOT / "cmake-out/android/llava_main"], capture_output=True, text=True)
    assert {line.split()[-1] for line in aligned.stdout.splitlines() if line.startswith("  LOAD")} == {"0x4000"}
    left_out = [line for line in done.stdout.splitlines() if line.startswith("without ")]
    assert [line.split(":")[0] for line in left_out] == [
        "without PCRE2 or utf8proc",
        "without JPEG",
        "without TIFF",
        "without WEBP",
    ]

    # Such files are named, with what to do. What needs no library is read.
    image = Image.new("RGB", (20, 10), (10, 200, 30))
    paths = [tmp_path / f"image.{suffix}" for suffix in ("webp", "tif", "gif", "bmp", "ppm", "tiff", "png")]
    for path in paths:
        image.save(path, **({"compression": "tiff_lzw"} if path.suffix == ".tif" else {}))
    command = [*emulator(), str(ROOT / "cmake-out/android/build/parts"), "pixels"]
    found = subprocess.run(command, input="".join(f"{path}\0" for path in paths).encode(), capture_output=True).stdout
    webp, tiff, rest = found.split(b"\n", 2)
    assert b"this runner was built without WebP; save the image as JPEG or PNG" in webp
    assert b"this runner was built without libtiff; save the image as JPEG or PNG" in tiff
    (tmp_path / "tokenizer.json").write_text("{}")
    refused = subprocess.run([*command[:-1], "encode", tmp_path / "tokenizer.json"], capture_output=True, text=True)
    assert refused.returncode == 2 and "was built without the libraries PCRE2 and utf8proc" in refused.stderr
    assert rest.count(b"20 10\n") == 5 and rest.count(image.tobytes()) >= 4


def test_the_archive_runs_where_it_is_unpacked(native_build, tiny_package, tmp_path):
    with tarfile.open(native_build / "llava_main-native.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    program = tmp_path / "llava_main"
    loaded = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for line in loaded.splitlines():
        if "executorch" in line:
            assert f"=> {tmp_path}/" in line
        assert not any(library in line for library in ("libjpeg", "libz.", "libtorch"))
    paths = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True).stdout
    assert "[$ORIGIN:" in paths and "site-packages" not in paths
    flags = [f"--model-path={tiny_package.program}", f"--image={tiny_package.folder}/image.png", "--prompt=What?"]
    done = subprocess.run([program, *flags], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip()
    bench = [tmp_path / "llava_bench", flags[0], "--prompt-tokens=10", "--decode-tokens=2", "--depth=5"]
    timed = json.loads(subprocess.run(bench, capture_output=True, text=True, check=True).stdout)
    assert timed["prompt_tokens"] == 10 and timed["prompt_ms"] > 0


@pytest.fixture
def phone(tmp_path, monkeypatch) -> Path:
    """A folder that a stand-in for adb copies to."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "phone").mkdir()
    adb = tmp_path / "bin/adb"
    adb.write_text(ADB.format(phone=tmp_path / "phone"))
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "phone"


def test_a_package_is_pushed_once_and_asked(phone, native_build, tiny_package, monkeypatch):
    monkeypatch.setenv("LLAVA_MAIN_DIR", str(native_build))
    command = [ROOT / "runner/deploy/adb_run.sh", tiny_package.folder, "--image=image.png", "--prompt=What's there?"]
    for _ in range(2):
        subprocess.run(command, check=True)
    log = (phone / "log").read_text().splitlines()
    assert log.count("push llava.pte") == 1 and log.count("push llava_main") == 2
    assert (phone / "tokenizer.bin").exists() and (phone / "libexecutorch.so").exists()
    assert log[-1].endswith(
        r"LD_LIBRARY_PATH=. ./llava_main --model-path=llava.pte --image=image.png --prompt=What\'s\ there\?"
    )


def test_the_runner_packed_for_phones_is_pushed_where_there_is_none_of_the_ndk(phone, phone_build, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/llava.pte").write_text("not a program")
    copy = tmp_path / "clone/runner/deploy/adb_run.sh"
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / "runner/deploy/adb_run.sh", copy)
    command = [copy, tmp_path / "package", "--prompt=What?"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "cmake-out/phone/llava/llava_main is missing: runner/build.sh phone" in done.stderr

    def last_command() -> str:
        subprocess.run(command, check=True)
        return (phone / "log").read_text().splitlines()[-1]

    built = tmp_path / "clone/cmake-out"
    built.mkdir()
    (built / "phone").symlink_to(phone_build)
    assert last_command().endswith(r" && sh ./llava_main --model-path=llava.pte --prompt=What\?")
    pushed = phone / "lib/llava_main", phone / "lib/libc.so.6", phone / "llava_main"
    assert all(path.stat().st_size > 1000 for path in pushed)
    (built / "android").mkdir()  # begun, and nothing came of it
    assert last_command().endswith(r" && sh ./llava_main --model-path=llava.pte --prompt=What\?")
    shutil.copy("/bin/true", built / "android/llava_main")
    assert last_command().endswith(r" && LD_LIBRARY_PATH=. ./llava_main --model-path=llava.pte --prompt=What\?")


def test_a_file_name_runs_no_command_on_the_phone(phone, native_build, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAVA_MAIN_DIR", str(native_build))
    package = tmp_path / "package"
    package.mkdir()
    name = "a; touch hacked; $(touch hacked).pte"
    (package / name).write_text("not a program")
    subprocess.run([ROOT / "runner/deploy/adb_run.sh", package, "--prompt=x"], check=True)
    command = (phone / "log").read_text().splitlines()[-1].partition("./llava_main ")[2]
    assert shlex.split(command) == [f"--model-path={name}", "--prompt=x"]


def test_the_phone_can_be_timed(phone, native_build, tiny_package, monkeypatch):
    monkeypatch.setenv("LLAVA_MAIN_DIR", str(native_build))
    subprocess.run([ROOT / "runner/deploy/adb_run.sh", tiny_package.folder, "--bench", "--depth=0,600"], check=True)
    log = (phone / "log").read_text().splitlines()
    assert "push llava_bench" in log and "push llava_main" not in log
    assert log[-1].endswith("LD_LIBRARY_PATH=. ./llava_bench --model-path=llava.pte --depth=0\\,600")


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "name the folder"), (["/tmp/nothing"], "must hold one .pte")], ids=str
)
def test_adb_run_says_what_is_missing(arguments, message, phone, native_build, monkeypatch):
    monkeypatch.setenv("LLAVA_MAIN_DIR", str(native_build))
    done = subprocess.run([ROOT / "runner/deploy/adb_run.sh", *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
