#!/usr/bin/env bash
# Draws docs/nano.png with the embedded model: eight prompts, a row of eight, two drawings each.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
for prompt in "a red circle" "a blue star" "a green triangle and a yellow square" "a red circle above a blue square" \
  "three purple diamonds" "a photo of a ship" "a photo of a horse" "a photo of a truck"; do
  cargo run --release --quiet -- generate "$prompt" -n 2 --seed 1 -o "$out" >/dev/null
done
cargo run --release --quiet -p unified-mm --example sheet -- "$out" 8 docs/nano.png
rm -r "$out"
