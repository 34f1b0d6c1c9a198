#!/usr/bin/env bash
exec "$(dirname "$0")/deploy/build.sh" "$@" # the published spelling; deploy/build.sh says what it takes
