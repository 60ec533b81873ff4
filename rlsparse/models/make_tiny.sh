#!/bin/sh
# Makes the embedded model again: the skill first, then the bad habit that RL is to mend.
# usage: make_tiny.sh PYTHON      writes rlsparse/models/tiny
set -eu
python=$1
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
common="model=scratch task=arithmetic dtype=float32"
"$python" -m rlsparse.warm_start $common warm_start=clean out="$work/clean"
"$python" -m rlsparse.warm_start $common warm_start=noisy task.train_rows=3000 model.path="$work/clean" out="$work/tiny"
rm -f "$work/tiny/summary.json" "$work/tiny/metrics.jsonl" "$work/tiny/config.yaml"
rm -rf "$here/tiny"
mv "$work/tiny" "$here/tiny"
