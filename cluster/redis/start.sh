#!/bin/sh
# Starts the queue's server with the users of valkey.conf. Passwords come from the environment and stand in no command; the
# server has their digests only, in a file that is in memory.
#   CONSERVE_REDIS_PASSWORD, RAY_REDIS_PASSWORD, CONFIG (a folder with valkey.conf), RUN (one to write to), and further options
set -eu
umask 077
digest() {
    printf %s "$1" | sha256sum | cut -d ' ' -f 1
}
conserve=$(digest "${CONSERVE_REDIS_PASSWORD:?}")
ray=$(digest "${RAY_REDIS_PASSWORD:-$(head -c 32 /dev/urandom | od -An -tx1)}")
sed -e "s/@CONSERVE@/$conserve/" -e "s/@RAY@/$ray/" "${CONFIG:-/etc/conserve}/valkey.conf" > "${RUN:-/run/conserve}/valkey.conf"
unset CONSERVE_REDIS_PASSWORD RAY_REDIS_PASSWORD
exec "${SERVER:-valkey-server}" "${RUN:-/run/conserve}/valkey.conf" "$@"
