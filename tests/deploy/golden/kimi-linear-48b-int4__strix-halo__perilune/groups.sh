#!/bin/sh
# The numbers of the groups that own the GPU's device nodes, for compose: ./groups.sh > .env
set -eu
for group in render video; do
    gid=$(getent group "$group" | cut -d: -f3)
    if [ -z "$gid" ]; then
        echo "there is no group $group on this host" >&2
        exit 1
    fi
    echo "$(echo "$group" | tr '[:lower:]' '[:upper:]')_GID=$gid"
done
