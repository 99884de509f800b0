#!/usr/bin/env bash
# Three ways to feed pictures to one decoder: LlamaGen on VQ codes, on QLIP codes as two sub-tokens a cell, and on QLIP codes
# as bits. Trains everything, measures, and leaves the tables of docs/comparison.md in RUNS/table.md.
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

columns=class_pictures.decoder_parameters@millions:2,class_pictures.tokens_a_picture@decoder:0,class_pictures.seconds_a_picture@wall:4
columns=$columns,class_pictures.asked_class@classifier:1%,class_pictures.feature_frechet@classifier:3
columns=$columns,class_pictures.reconstruction_psnr@rgb8:2,class_pictures.reconstructions_right@classifier:1%
columns=$columns,class_pictures.reconstruction_frechet@classifier:3

# measure NAME TITLE GUIDANCE
measure() {
  local out="$runs/eval/$1.$3"
  mkdir -p "$runs/eval"
  [ -f "$out/summary.json" ] || target/release/eval run --tasks class_pictures --model "$runs/$1" --judge "$runs/classifier" \
    --data "$photos" --guidance "$3" --out "$out" --resume >"$out.log" 2>&1 || failed "$out.log"
  row "$runs/$1.$3.md" target/release/eval table "$out" --metrics "$columns" --as "$2" --no-head
}

# docs/ablation.md's best tokenizer, trained for longer
each "train qlip1 configs/ablation/stage1.toml run.steps=1000 $best; train qlip2 configs/ablation/stage2.toml start=$runs/qlip1 run.steps=300" \
  "train vq $here/vq.toml; train classifier $here/classifier.toml"
each "train llamagen-vq $here/llamagen-vq.toml image_tokenizer=$runs/vq" \
  "train llamagen-qlip $here/llamagen-qlip.toml image_tokenizer=$runs/qlip2" \
  "train llamagen-bits $here/llamagen-bits.toml image_tokenizer=$runs/qlip2"
# one after the other, because drawing is timed
models=(llamagen-vq llamagen-qlip llamagen-bits)
titles=("VQ, 10 bits a cell, one token" "QLIP, 20 bits a cell, two sub-tokens" "QLIP, 20 bits a cell, bitwise head")
scales=(1 2 4 6)
for guidance in "${scales[@]}"; do
  for i in 0 1 2; do measure "${models[i]}" "${titles[i]}" "$guidance"; done
done
{
  echo '| decoder on | parameters | tokens a picture | s a picture | asked class (classifier) | feature_frechet@classifier | tokenizer: PSNR, dB | its reconstructions classified right | and their feature_frechet |'
  echo '|---|---|---|---|---|---|---|---|---|'
  for model in "${models[@]}"; do cat "$runs/$model.2.md"; done
  echo
  echo '| decoder on | guidance | asked class (classifier) | feature_frechet@classifier |'
  echo '|---|---|---|---|'
  for model in "${models[@]}"; do
    for guidance in "${scales[@]}"; do
      awk -F'|' -v g="$guidance" '{ print "|" $2 "| " g " |" $6 "|" $7 "|" }' "$runs/$model.$guidance.md"
    done
  done
} >"$runs/table.md"
cat "$runs/table.md"
