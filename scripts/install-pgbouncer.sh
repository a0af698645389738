#!/bin/sh
# Installs pgbouncer from the system's packages, unless it is there: a pooler for the tests.
set -eu

say() { echo "install-pgbouncer: $*"; }

for place in "$(command -v pgbouncer || true)" /usr/sbin/pgbouncer; do
    if [ -x "$place" ]; then
        say "$place is there"
        exit 0
    fi
done
if ! command -v apt-get >/dev/null; then
    say "there is no apt-get here: install pgbouncer 1.18 or newer" >&2
    exit 1
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        say "there is no sudo: run 'apt-get install pgbouncer' as root" >&2
        exit 1
    }
    as_root=sudo
fi

say "installing pgbouncer with apt-get"
$as_root apt-get update -qq
# The tests run servers of their own, so the package's need not start: RUNLEVEL=1 keeps it from
# that under sysvinit. Under systemd nothing does, so it is stopped afterwards.
$as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq pgbouncer
if [ -d /run/systemd/system ]; then
    say "stopping and disabling the package's own service, which nothing here uses"
    $as_root systemctl disable --now pgbouncer.service
fi
say "$(/usr/sbin/pgbouncer --version | head -1)"
