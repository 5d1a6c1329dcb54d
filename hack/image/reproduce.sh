#!/usr/bin/env bash
# Builds Berth's image twice from the current commit, in two clones and two
# environments that have nothing in common but the Go installation and the
# modules, and fails when a byte differs. The second build has an empty cache.
#
# Usage: hack/image/reproduce.sh [ARCHITECTURES], as hack/image takes them
set -euo pipefail
cd "$(dirname "$0")/../.."
architectures=${1:-$(go env GOARCH)}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build() { # NAME ENVIRONMENT...: clones into NAME and builds there
  local name=$1
  shift
  git clone --quiet . "$work/$name/berth"
  mkdir "$work/$name/tmp" "$work/$name/home"
  echo "$name build, of $(git rev-parse --short HEAD) for $architectures"
  (cd "$work/$name/berth" &&
    go build -o "$work/$name/image" ./hack/image &&
    env "$@" TMPDIR="$work/$name/tmp" "$work/$name/image" -arch "$architectures" -oci -out "$work/$name/dist" berth)
}

build first
umask 077
build second-in-a-longer-path HOME="$work/second-in-a-longer-path/home" \
  GOCACHE="$work/cache" GOMODCACHE="$(go env GOMODCACHE)" GOFLAGS=-tags=unknown GOAMD64=v3 \
  TZ=Pacific/Auckland LC_ALL=C SOURCE_DATE_EPOCH=1

if ! (cd "$work/first/dist" && sha256sum -- *) | (cd "$work/second-in-a-longer-path/dist" && sha256sum --check --strict); then
  echo "the builds differ"
  exit 1
fi
