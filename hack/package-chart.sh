#!/usr/bin/env bash
# Packs the chart as helm does, but so that the same chart is the same file: helm
# writes the time of day into it.
#
# Usage: hack/package-chart.sh HELM TAG FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
helm=$1 tag=$2 folder=$3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$helm" package charts/berth --version "${tag#v}" --app-version "$tag" --destination "$work" >/dev/null
mkdir "$work/chart"
tar -xzmf "$work/berth-${tag#v}.tgz" -C "$work/chart"
tar -C "$work/chart" --sort=name --mtime="$(git log -1 --format=%cI)" --owner=0 --group=0 --numeric-owner \
  --mode=u=rw,go=r,a+X --use-compress-program='gzip -9n' -cf "$folder/berth-${tag#v}.tgz" berth
echo "$folder/berth-${tag#v}.tgz"
