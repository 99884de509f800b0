#!/usr/bin/env bash
# Three ways to feed pictures to one decoder: LlamaGen on VQ codes, on QLIP codes as two sub-tokens a cell, and on QLIP codes
# as bits. Trains everything, measures, and leaves the table of docs/comparison.md in RUNS/table.md.
#
#     configs/llamagen/compare/run.sh [RUNS]      (default runs/compare)
#
# What is done is skipped, what was stopped goes on. Each training has a core of its own; docs/comparison.md has what each costs.
set -euo pipefail
cd "$(dirname "$0")/../../.."
runs=${1:-runs/compare}
photos=../shared/data/cifar10
here=configs/llamagen/compare
. configs/tables.sh

# measure NAME TITLE
measure() {
  if [ ! -s "$runs/$1.md" ]; then
    target/release/eval pictures --model "$runs/$1" --classifier "$runs/classifier" --photos "$photos" --row "$2" >"$runs/$1.part"
    mv "$runs/$1.part" "$runs/$1.md"
  fi
}

each "train qlip1 configs/ablation/stage1.toml; train qlip2 configs/ablation/stage2.toml start=$runs/qlip1" \
  "train vq $here/vq.toml; train classifier $here/classifier.toml"
each "train llamagen-vq $here/llamagen-vq.toml tokenizer=$runs/vq" \
  "train llamagen-qlip $here/llamagen-qlip.toml tokenizer=$runs/qlip2" \
  "train llamagen-bits $here/llamagen-bits.toml tokenizer=$runs/qlip2"
# one after the other, because drawing is timed
measure llamagen-vq "VQ, 10 bits a cell, one token"
measure llamagen-qlip "QLIP, 20 bits a cell, two sub-tokens"
measure llamagen-bits "QLIP, 20 bits a cell, bitwise head"
{
  echo '| decoder on | parameters | tokens a picture | s a picture | asked class (classifier) | feature_frechet@classifier | tokenizer: PSNR, dB | its reconstructions classified right | and their feature_frechet |'
  echo '|---|---|---|---|---|---|---|---|---|'
  cat "$runs"/llamagen-{vq,qlip,bits}.md
} >"$runs/table.md"
cat "$runs/table.md"
