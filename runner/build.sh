#!/usr/bin/env bash
exec "$(dirname "$0")/deploy/build.sh" "$@" # the older spelling, kept; deploy/build.sh says what it takes
