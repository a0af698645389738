#!/bin/sh
# Installs redis-server from the system's packages, unless it or valkey-server is there.
set -eu

say() { echo "install-redis: $*"; }

for server in redis-server valkey-server; do
    if command -v "$server" >/dev/null; then
        say "$server is there"
        exit 0
    fi
done
if ! command -v apt-get >/dev/null; then
    say "there is no apt-get here: install redis-server 6.2 or newer, or valkey-server" >&2
    exit 1
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        say "there is no sudo: run 'apt-get install redis-server' as root" >&2
        exit 1
    }
    as_root=sudo
fi

say "installing redis-server with apt-get"
$as_root apt-get update -qq
# Vecmill runs a server of its own, so the package's need not start: RUNLEVEL=1 keeps it from
# that under sysvinit. Under systemd nothing does, so it is stopped afterwards.
$as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq redis-server
if [ -d /run/systemd/system ]; then
    say "stopping and disabling the package's own service, which nothing here uses"
    $as_root systemctl disable --now redis-server.service
fi
say "$(redis-server --version)"
