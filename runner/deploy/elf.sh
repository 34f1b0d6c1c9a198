#!/usr/bin/env bash
# What the build scripts ask of the programs and shared libraries (ELF files) that they pack. It is sourced.

fail() { echo "error: $*" >&2; exit 2; }
need() { command -v "$1" > /dev/null || fail "$1 is missing: $2"; } # need COMMAND HOW-TO-GET-IT

check_pages() { # check_pages FILE...: each must load where a page of memory has 16 KB, as on a Raspberry Pi 5
    local file alignment alignments small=()
    need readelf "apt-get install binutils"
    for file in "$@"; do
        alignments=$(LC_ALL=C readelf -lW "$file" 2> /dev/null | awk '$1 == "LOAD" { print $NF }') || true
        [[ -n $alignments ]] || fail "$file is no program and no shared library"
        for alignment in $alignments; do
            ((alignment >= 0x4000)) || { small+=("$file"); break; }
        done
    done
    [[ ${#small[@]} == 0 ]] || fail "${small[*]}: linked for memory pages of less than 16 KB, and would not load on" \
        "newer phones or a Raspberry Pi 5. Link with -Wl,-z,max-page-size=16384, as Android's NDK does from r28 on"
}

libraries_of() { # libraries_of FILE: the names of the shared libraries that it needs
    LC_ALL=C readelf -dW "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p'
}
