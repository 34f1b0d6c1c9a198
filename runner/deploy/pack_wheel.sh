#!/usr/bin/env bash
# Packs the Python runner with the C++ engine into a wheel. build.sh calls it.
#
#   runner/deploy/pack_wheel.sh PYTHON OUT PLATFORM LIBRARY...
#
# Leaves OUT/llava_runner-VERSION-py3-none-PLATFORM.whl, in which the libraries stand beside the Python files.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 out=$2 platform=$3
shift 3
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
cp -r pyproject.toml README.md LICENSE llava_runner "$scratch"
cp "$@" "$scratch/llava_runner"
rm -f "$out"/llava_runner-*.whl
"$python" -m pip wheel --no-deps --quiet --disable-pip-version-check --wheel-dir "$out" \
    --config-settings=--build-option=--plat-name="$platform" "$scratch"
