#!/bin/sh
# Makes the embedded models again: the skill first, then the bad habit that RL is to mend.
# usage: make_tiny.sh PYTHON      writes rlsparse/model/embedded/tiny and rlsparse/model/embedded/tiny_deep
set -eu
python=$1
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

make_model() {  # NAME, learning rate of the skill, size
  name=$1 lr=$2
  shift 2
  common="model=scratch task=arithmetic dtype=float32 $*"
  "$python" -m rlsparse.warm_start $common warm_start=clean warm_start.lr="$lr" out="$work/$name-clean"
  "$python" -m rlsparse.warm_start $common warm_start=noisy task.train_rows=3000 \
    model.path="$work/$name-clean" out="$work/$name"
  rm -f "$work/$name/summary.json" "$work/$name/metrics.jsonl" "$work/$name/config.yaml"
  rm -rf "${here:?}/$name"
  mv "$work/$name" "$here/$name"
}

make_model tiny 3e-3
make_model tiny_deep 2e-3 model.layers=12 model.hidden_size=64 model.intermediate_size=192
