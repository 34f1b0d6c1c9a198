#!/usr/bin/env bash
# Packs programs for 64-bit ARM Linux with all that they need of Linux: its loader, its C library and so on. So they run
# on an Android phone, which has a Linux kernel and other libraries. `build.sh phone` calls this.
#
#   runner/deploy/pack_phone.sh PROGRAMS OUT
#
# PROGRAMS has llava_main, llava_bench and ExecuTorch's libraries. OUT gets the folder llava and the same as a .tar.gz.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=/dev/null
source "$here/elf.sh"
[[ $# == 2 ]] || fail "call it with two folders: pack_phone.sh PROGRAMS OUT"
from=$1 out=$2 packed=$2/llava.new
need readelf "apt-get install binutils"
need dpkg-query "the libraries are those of Debian's packages for ARM"

programs=(llava_main llava_bench)
loader=ld-linux-aarch64.so.1
# Debian's packages for ARM get security updates, the copies that come with the cross compiler do not.
places=("$from" /lib/aarch64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/aarch64-linux-gnu/lib)

find_library() { # find_library NAME: its path
    local place
    for place in "${places[@]}"; do
        if [[ -f $place/$1 ]]; then
            echo "$place/$1"
            return
        fi
    done
    fail "$1 is missing: ExecuTorch's libraries and the programs should be in $from, which" \
        "runner/build.sh aarch64 makes;" \
        "others come with apt-get install libc6:arm64 libstdc++6:arm64"
}

copy_license() { # copy_license LIBRARY: the license of the Debian package that it is from, and the package's version
    local package copyright text
    package=$(dpkg-query --search "*${1#/usr}" 2> /dev/null | sed -n '1s/: .*//p') # a folder may be a link to /usr
    copyright=/usr/share/doc/${package%:*}/copyright
    [[ -n $package && -f $copyright ]] ||
        fail "the license of $1 is missing: it belongs to no Debian package, or $copyright was left out"
    cp "$copyright" "$packed/licenses/${package%:*}"
    dpkg-query --show --showformat='${Package} ${Version}\n' "$package" >> "$packed/licenses/packages"
    while read -r text; do # what it refers to
        [[ ! -f $text ]] || cp "$text" "$packed/licenses/"
    done < <(grep -o '/usr/share/common-licenses/[A-Za-z0-9.-]*[A-Za-z0-9]' "$copyright")
}

rm -rf "$packed"
mkdir -p "$packed/lib" "$packed/licenses"
names=("${programs[@]}" "$loader") # it grows by what they need
for ((i = 0; i < ${#names[@]}; ++i)); do
    name=${names[i]}
    [[ ! -f $packed/lib/$name ]] || continue
    file=$(find_library "$name")
    cp "$file" "$packed/lib/$name"
    mapfile -t -O "${#names[@]}" names < <(libraries_of "$file")
    [[ $file == "$from"/* ]] || copy_license "$file"
done
sort -u -o "$packed/licenses/packages" "$packed/licenses/packages"
for program in "${programs[@]}"; do
    cp "$here/on_phone.sh" "$packed/$program"
done
chmod 755 "${programs[@]/#/$packed/}"
check_pages "$packed"/lib/*

rm -rf "$out/llava"
mv "$packed" "$out/llava"
archive=$out/llava_main-phone.tar.gz
tar -czf "$archive.new" -C "$out" llava
mv "$archive.new" "$archive"
