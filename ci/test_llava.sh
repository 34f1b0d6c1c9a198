#!/usr/bin/env bash
# Builds the C++ runner, exports the built-in model, asks it about the sample image, and compares the answer.
#
#   ci/test_llava.sh [native|aarch64]
#
# aarch64 runs on this machine's own processor where that is one, and elsewhere under qemu, as on a Raspberry Pi 5.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-native}
expected="The image shows a blue circle, a red triangle and a purple square."
package=cmake-out/test-package

make --quiet .venv/.ready
runner/build.sh "$target"
.venv/bin/python -m llava_export.export --model tiny-llava --output-dir "$package" --with-artifacts
.venv/bin/test_pte "$package/llava.pte"

run=("cmake-out/$target/llava_main")
if [[ $target == aarch64 && $(uname -m) != aarch64 ]]; then
    command -v qemu-aarch64 > /dev/null || {
        echo "error: qemu-aarch64 is missing: apt-get install qemu-user libstdc++6:arm64" >&2
        exit 2
    }
    run=(qemu-aarch64 -cpu cortex-a76 "${run[@]}")
fi
answer=$("${run[@]}" --model_path="$package/llava.pte" --tokenizer_path="$package/tokenizer.bin" \
    --image_path="$package/image.pt" --prompt="What is in the image? ASSISTANT:" --seq_len=768 --temperature=0)
echo "$answer"
if [[ $answer != "$expected"* ]]; then
    echo "FAIL: expected an answer that begins with: $expected" >&2
    exit 1
fi
echo "PASS: $target"
