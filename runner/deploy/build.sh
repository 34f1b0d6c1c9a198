#!/usr/bin/env bash
# Builds llava_main, the C++ runner, llava_bench, which times it, and libllava_engine, which is the runner as a library,
# against the SDK in an ExecuTorch wheel: neither the sources of ExecuTorch nor torch are needed. Where a JDK is found,
# libllava_jni and llava.jar are the library for Java.
#
#   runner/build.sh [native|aarch64|phone|android] [--wheel] [--clean]
#
# native     for this machine, against the wheel in its Python environment
# aarch64    for 64-bit ARM Linux (Raspberry Pi 5, Jetson Orin): cross-compiled against the aarch64 wheel, which pip
#            fetches
# phone      for Android phones, without Android's NDK: the programs of aarch64, with the libraries of Linux beside them
# android    for Android phones (arm64-v8a): needs ANDROID_NDK, and in EXECUTORCH_ANDROID an ExecuTorch built for
#            Android
#
# --wheel    also packs the Python runner with the library, as a wheel for pip: native and aarch64 alone
#
# Leaves them in cmake-out/TARGET, with the shared libraries that they need, and the same files in a .tar.gz. For phones
# they are in the folder cmake-out/phone/llava, without the library.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=/dev/null
source runner/deploy/elf.sh

target=native clean=false wheel=false
for argument in "$@"; do
    case $argument in
        native | aarch64 | phone | android) target=$argument ;;
        --clean) clean=true ;;
        --wheel) wheel=true ;;
        *) fail "$argument is none of native, aarch64, phone, android, --wheel, --clean" ;;
    esac
done
if $wheel && [[ $target != native && $target != aarch64 ]]; then fail "--wheel is for native and aarch64"; fi
out=cmake-out/$target
if [[ $target == phone ]]; then
    options=()
    if $clean; then options=(--clean); fi
    runner/deploy/build.sh aarch64 "${options[@]}"
    runner/deploy/pack_phone.sh cmake-out/aarch64 "$out"
    echo "$out/llava, a folder to copy to a phone: runner/deploy/adb_run.sh does it"
    exit
fi
if $clean; then rm -rf "$out"; fi

python=.venv/bin/python
[[ -x $python ]] || python=python3
package=$($python -c 'import executorch; print(next(iter(executorch.__path__)))' 2> /dev/null) ||
    fail "the executorch package is missing: make .venv/.ready, or pip install executorch"
version=$($python -c 'import importlib.metadata as m; print(m.version("executorch"))')
cmake=$($python -c 'import cmake, os; print(os.path.join(cmake.CMAKE_BIN_DIR, "cmake"))' 2> /dev/null) || cmake=cmake
need "$cmake" "pip install cmake"
need_header() { # need_header HEADER DEBIAN-PACKAGE
    [[ -f /usr/include/$1 || -f /usr/local/include/$1 ]] || fail "$1 is missing: apt-get install $2"
}
need_header nlohmann/json.hpp nlohmann-json3-dev
need_header CLI/CLI.hpp libcli11-dev
need_header xxhash.h libxxhash-dev
mkdir -p "$out"

fetch_sdk() { # the wheel of the same version for another processor; only its SDK is unpacked
    sdk=$out/sdk-$version/executorch
    [[ ! -f $sdk/.complete ]] || return 0
    echo "fetching the aarch64 wheel of executorch $version"
    rm -rf "$out"/sdk-*
    $python -m pip download "executorch==$version" --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 \
        --dest "$out/wheel" --quiet --disable-pip-version-check ||
        fail "the aarch64 wheel of executorch $version could not be fetched"
    $python - "$out"/wheel/*.whl "$out/sdk-$version" << 'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    parts = ("executorch/include/", "executorch/lib/", "executorch/share/")
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith(parts)])
PYTHON
    rm -r "$out/wheel"
    touch "$sdk/.complete"
}

libraries=(libexecutorch.so libexecutorch_{backend_xnnpack,etdump,kernels_optimized,kernels_quantized,threadpool}.so)
pyproject=runner/pyproject.toml
[[ -f $pyproject ]] || pyproject=pyproject.toml
own_version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$pyproject")
configure=(-DLLAVA_EXECUTORCH_VERSION="$version" -DLLAVA_VERSION="${own_version:-unknown}")
case $target in
    native)
        need g++ "apt-get install g++"
        need_header pcre2.h libpcre2-dev
        need_header utf8proc.h libutf8proc-dev
        sdk=$package
        ;;
    aarch64)
        need aarch64-linux-gnu-g++ "apt-get install g++-aarch64-linux-gnu"
        for library in libjpeg libz libpcre2-8 libutf8proc; do
            [[ -n $(find /usr/lib/aarch64-linux-gnu -name "$library.*" -print -quit 2> /dev/null) ]] || fail \
                "$library for aarch64 is missing: dpkg --add-architecture arm64 && apt-get update &&" \
                "apt-get install lib{jpeg,tiff,webp,pcre2,utf8proc}-dev:arm64 zlib1g-dev:arm64"
        done
        fetch_sdk
        configure+=(-DCMAKE_TOOLCHAIN_FILE="$PWD/runner/deploy/aarch64.cmake")
        ;;
    android)
        [[ -n ${ANDROID_NDK:-} ]] ||
            fail "ANDROID_NDK is not set: the folder of Android's NDK, r26 or newer, from developer.android.com/ndk"
        toolchain=$ANDROID_NDK/build/cmake/android.toolchain.cmake
        [[ -f $toolchain ]] || fail "ANDROID_NDK=$ANDROID_NDK is no NDK: it lacks build/cmake/android.toolchain.cmake"
        [[ -n ${EXECUTORCH_ANDROID:-} ]] || fail \
            "EXECUTORCH_ANDROID is not set: the folder that ExecuTorch $version was installed to, built for Android" \
            "from its source with its preset android-arm64-v8a and XNNPACK, optimized and quantized kernels"
        sdk=$EXECUTORCH_ANDROID
        [[ -n $(find "$sdk" -iname 'executorch-config.cmake' -print -quit 2> /dev/null) ]] ||
            fail "EXECUTORCH_ANDROID=$sdk holds no ExecuTorch: it lacks executorch-config.cmake" \
                "(cmake --install makes it)"
        configure+=(-DCMAKE_TOOLCHAIN_FILE="$toolchain" -DANDROID_ABI=arm64-v8a -DANDROID_PLATFORM=android-28)
        ;;
esac

shared=() # that the programs need; an ExecuTorch for Android may consist of static libraries
for library in "${libraries[@]}"; do
    path=$(find "$sdk" -name "$library" -print -quit)
    [[ -z $path ]] || shared+=("$path")
done
if [[ $target != native ]]; then check_pages "${shared[@]}"; fi

"$cmake" -S runner/cpp -B "$out/build" -DCMAKE_PREFIX_PATH="$(realpath "$sdk")" "${configure[@]}" \
    > "$out/configure.log" 2>&1 ||
    { cat "$out/configure.log" >&2; exit 1; }
sed -n 's/^-- without/without/p' "$out/configure.log" # image formats; docs/guides/device.md names their libraries
"$cmake" --build "$out/build" --parallel "$(nproc)"

programs=("$out"/build/{llava_main,llava_bench,libllava_engine.so})
if [[ -f $out/build/libllava_jni.so ]]; then programs+=("$out/build/libllava_jni.so"); fi
if [[ $target != native ]]; then check_pages "${programs[@]}"; fi
if [[ -f $out/build/llava.jar ]]; then programs+=("$out/build/llava.jar"); fi
files=()
for path in "${programs[@]}" "${shared[@]}"; do
    name=$(basename "$path")
    cp "$path" "$out/$name.new"
    mv "$out/$name.new" "$out/$name" # a program that is running keeps its file
    files+=("$name")
done
archive=$out/llava_main-$target.tar.gz
tar -czf "$archive.new" -C "$out" "${files[@]}"
mv "$archive.new" "$archive"
echo "$out/llava_main and, to copy to a device, $archive"
if $wheel; then
    machine=$(uname -m)
    if [[ $target == aarch64 ]]; then machine=aarch64; fi
    runner/deploy/pack_wheel.sh "$(realpath -s "$(command -v "$python")")" "$PWD/$out" "linux_$machine" \
        "$PWD/$out"/libllava_engine.so "${shared[@]}"
    echo "and $out/llava_runner-$own_version-py3-none-linux_$machine.whl, for pip"
fi
