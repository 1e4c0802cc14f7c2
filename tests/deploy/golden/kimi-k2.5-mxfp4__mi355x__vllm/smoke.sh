#!/bin/sh
# Is the server alive and sane: its model, a tiny answer, a stream.
set -eu
url=${1:-http://127.0.0.1:8000}
exec perilune smoke "$url" --model kimi-k2.5 --timeout "${SMOKE_TIMEOUT:-600}"
