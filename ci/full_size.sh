#!/usr/bin/env bash
# Measures an export of full size. Makes a checkpoint with random weights, exports, verifies and runs it, and exports it
# once more by the straightforward pipeline. Prints the wall time and the peak resident memory of each step, as GNU time
# counts them, and what `--dry-run` expects. It is not part of `make test`: 7B takes half an hour and 35 GB of disk.
#
#   ci/full_size.sh [llava-1.5-7b|llava-1.5-13b|mobilevlm-1.7b|mobilevlm-3b|...] [FOLDER]
#
# LAYERS=8 gives the decoder 8 layers. STRAIGHTFORWARD=0 leaves out the comparison.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:-llava-1.5-7b}
folder=${2:-/tmp/llava_export-full-size}
checkpoint=$folder/$model${LAYERS:+-$LAYERS-layers}
package=$folder/package
python=.venv/bin/python
summary=$folder/summary.txt

command -v /usr/bin/time > /dev/null || { echo "error: GNU time is missing: apt-get install time" >&2; exit 2; }
make .venv/.ready
mkdir -p "$package"
: > "$summary"

measure() {  # measure LABEL COMMAND...: runs the command, and adds a line to the summary
    local label=$1 seconds kilobytes code=0
    shift
    printf '\n== %s\n' "$label"
    /usr/bin/time --format '%e %M' --output "$folder/time.txt" "$@" || code=$?
    read -r seconds kilobytes < <(tail -1 "$folder/time.txt")
    awk -v label="$label" -v s="$seconds" -v k="$kilobytes" -v code="$code" \
        'BEGIN { printf "%-34s %7.1f s   peak %6.2f GiB%s\n",
                 label, s, k / 2 ^ 20, code ? "   exit code " code : "" }' >> "$summary"
}

if [[ ! -f $checkpoint/config.json ]]; then
    rm -rf "$checkpoint"
    measure "make the checkpoint" $python -m benchmarks.make_checkpoint --like "$model" --out "$checkpoint" \
        ${LAYERS:+--layers "$LAYERS"}
fi
export_command=(.venv/bin/llava export --model "$checkpoint" --output-dir "$package" --with-artifacts)
"${export_command[@]}" --dry-run
measure "export" "${export_command[@]}"
ask=(.venv/bin/llava run "$package" --image "$package/image.png" --prompt "What is in the image?" --temperature 0
    --max-new-tokens 32)
measure "verify" .venv/bin/llava verify "$package"
measure "run, 32 tokens" "${ask[@]}"
measure "export without the golden record" "${export_command[@]}" --no-golden
if [[ ${STRAIGHTFORWARD:-1} == 1 ]]; then
    measure "the straightforward pipeline" $python -m benchmarks.straightforward \
        --model "$checkpoint" --out "$folder/straightforward.pte"
fi
printf '\n%s, random weights, %s cores\n' "$(basename "$checkpoint")" "$(nproc)"
cat "$summary"
stat --format '%n: %s bytes' "$package/llava.pte"
