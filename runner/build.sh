#!/usr/bin/env bash
# Builds llava_main, the C++ runner, for this machine, against the SDK in the ExecuTorch wheel of its Python environment.
#
#   runner/build.sh [native] [--clean]
#
# Leaves cmake-out/native/llava_main with the shared libraries it needs beside it, and the same as a .tar.gz.
set -euo pipefail
cd "$(dirname "$0")/.."

target=native clean=false
for argument in "$@"; do
    case $argument in
        native) target=$argument ;;
        --clean) clean=true ;;
        *) echo "error: $argument is neither native nor --clean" >&2; exit 2 ;;
    esac
done

python=.venv/bin/python
[[ -x $python ]] || python=python3
out=cmake-out/$target
if $clean; then rm -rf "$out"; fi

need() { # need COMMAND PACKAGE: stops unless the command is there
    command -v "$1" > /dev/null || { echo "error: $1 is missing: $2" >&2; exit 2; }
}

if ! sdk=$($python -c 'import executorch; print(next(iter(executorch.__path__)))' 2> /dev/null); then
    echo "error: the executorch package is missing: make .venv/.ready, or pip install executorch" >&2
    exit 2
fi
cmake=$($python -c 'import cmake, os; print(os.path.join(cmake.CMAKE_BIN_DIR, "cmake"))' 2> /dev/null) || cmake=cmake
need "$cmake" "pip install cmake"
need g++ "apt-get install g++"

mkdir -p "$out"
"$cmake" -S runner/cpp -B "$out/build" -DCMAKE_PREFIX_PATH="$sdk" > "$out/configure.log" 2>&1 ||
    { cat "$out/configure.log" >&2; exit 1; }
"$cmake" --build "$out/build" --parallel "$(nproc)"

# The program with the shared libraries it needs beside it.
cp "$out/build/llava_main" "$out/"
for library in libexecutorch.so libexecutorch_backend_xnnpack.so libexecutorch_kernels_optimized.so \
    libexecutorch_kernels_quantized.so libexecutorch_threadpool.so; do
    cp "$sdk/lib/$library" "$out/"
done
tar -czf "$out/llava_main-$target.tar.gz" -C "$out" llava_main $(cd "$out" && ls libexecutorch*.so)
echo "$out/llava_main and, to copy to a device, $out/llava_main-$target.tar.gz"
