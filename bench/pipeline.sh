#!/bin/sh
# The whole way of a corpus: HTTP in, queue, model, database, until every node is ready.
# Prints the summary of `vecmill ingest --wait` as one JSON object.
#
#   bench/pipeline.sh [CORPUS.jsonl]
#
# Runs on SQLite and a private Redis in a temporary directory, unless ACTIVEKG_DSN and REDIS_URL
# say otherwise. EMBEDDING_BACKEND=hash leaves the model out: what is left is the cost of HTTP,
# queue and database.
set -eu
cd "$(dirname "$0")/.."
corpus=${1:-bench/debian-packages.jsonl}
dir=$(mktemp -d)
export VECMILL_DATA_DIR="$dir" VECMILL_BIND="${VECMILL_BIND:-127.0.0.1:8090}" RUST_LOG="${RUST_LOG:-warn}"
target/release/vecmill serve >"$dir/out" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true; rm -rf "$dir"' EXIT INT TERM
until grep -q listens "$dir/out"; do
    kill -0 "$server" # ends this script when the server has ended
    sleep 0.1
done
target/release/vecmill ingest "$corpus" --url "http://$VECMILL_BIND" --wait --json
