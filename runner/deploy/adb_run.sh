#!/usr/bin/env bash
# Copies a package and the runner to an Android phone, and asks there.
#
#   runner/deploy/adb_run.sh PACKAGE [--bench] [llava_main's options, or llava_bench's ...]
#   runner/deploy/adb_run.sh demo --image=image.png --prompt="What is in the image?" --temperature=0
#   runner/deploy/adb_run.sh demo --bench --image=image.png --depth=0,600
#
# PACKAGE is the folder that an export with --with-artifacts made. Files that are on the phone already, of the same
# size, are not copied again. Paths in the options are the phone's; those of files in the package need no folder.
# ANDROID_SERIAL chooses among several phones. The runner is that of `build.sh android` where it was built, otherwise
# that of `build.sh phone`; LLAVA_MAIN_DIR names another folder.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)

fail() { echo "error: $1" >&2; exit 2; }
[[ $# -ge 1 ]] || fail "name the folder of the package: runner/deploy/adb_run.sh demo --prompt=..."
package=$1
shift
program=llava_main
if [[ ${1:-} == --bench ]]; then
    program=llava_bench
    shift
fi
command -v adb > /dev/null || fail "adb is missing: it comes with Android's platform tools"
runner=$here/cmake-out/android
[[ -x $runner/$program ]] || runner=$here/cmake-out/phone/llava
runner=${LLAVA_MAIN_DIR:-$runner}
[[ -x $runner/$program ]] || fail "$runner/$program is missing: runner/build.sh phone"
programs=("$package"/*.pte)
[[ ${#programs[@]} == 1 && -f ${programs[0]} ]] || fail "$package must hold one .pte"
adb get-state > /dev/null 2>&1 || fail "no phone answers: adb devices lists what is connected"

folder=/data/local/tmp/llava
push() { # copies a file unless one of its size is there
    local there name
    printf -v name %q "$(basename "$1")" # the phone's shell reads it
    there=$(adb shell "stat -c %s $folder/$name 2> /dev/null || true" | tr -d '\r')
    [[ $there == "$(stat -c %s "$1")" ]] || adb push "$1" "$folder/" > /dev/null
}
adb shell "mkdir -p $folder"
for file in "$package"/*; do push "$file"; done
for file in "$runner/$program" "$runner"/*.so; do
    [[ ! -f $file ]] || adb push "$file" "$folder/" > /dev/null # small, and of one size after many a change
done
start="chmod +x $program && LD_LIBRARY_PATH=. ./$program"
if [[ -d $runner/lib ]]; then # packed by build.sh phone: a script, and the libraries of Linux
    adb push "$runner/lib" "$folder/" > /dev/null
    start="sh ./$program"
fi
printf -v options ' %q' "--model-path=$(basename "${programs[0]}")" "$@"
adb shell "cd $folder && $start$options"
