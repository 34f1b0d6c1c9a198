#!/bin/sh
# Starts llava_main or llava_bench, whichever this file is called, on an Android phone. It lies beside the folder lib,
# which has the programs, their libraries, and the loader for these: Android's own loader cannot read them.
# Any POSIX shell runs it, so Android's does.
fail() { echo "error: $1" >&2; exit 2; }

case $0 in
    */*) lib=${0%/*}/lib ;;
    *) lib=./lib ;; # sh llava_main
esac
program=${0##*/}
loader=$lib/ld-linux-aarch64.so.1
machine=$(uname -m)
case $machine in
    aarch64 | armv8*) ;;
    *) fail "$program is for 64-bit ARM, and this is $machine" ;;
esac
for file in "$loader" "$lib/$program"; do
    [ -f "$file" ] || fail "$file is missing: copy the whole folder that $program came with"
done
[ -x "$loader" ] || fail "$loader is not executable: chmod +x it, in a folder that lets programs run"
unset LD_PRELOAD LD_LIBRARY_PATH # they name Android's libraries
# The loader replaces $ORIGIN by the folder of the program. So its name may have characters that separate paths.
# shellcheck disable=SC2016
exec "$loader" --inhibit-cache --library-path '$ORIGIN' "$lib/$program" "$@"
