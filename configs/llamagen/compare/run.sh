#!/usr/bin/env bash
# Three ways to feed pictures to one decoder, at equal time: LlamaGen on VQ codes, on QLIP codes as two sub-tokens a cell,
# and on QLIP codes as bits. Trains everything, measures, and leaves the table in RUNS/table.md.
#
#     configs/llamagen/compare/run.sh [RUNS]      (default runs/compare)
#
# What is done is skipped, what was stopped goes on. QLIP=FOLDER takes a trained QLIP instead of training one.
set -euo pipefail
cd "$(dirname "$0")/../../.."

RUNS=${1:-runs/compare}
QLIP=${QLIP:-$RUNS/qlip2}
PHOTOS=../shared/data/cifar10
HERE=configs/llamagen/compare
BIN=${CARGO_TARGET_DIR:-target}/release

# the whole workspace at once, so that both programs share one set of dependencies
cargo build --release --quiet --workspace

# train NAME CONFIG [ARGUMENT...]
train() {
    local name=$1 config=$2
    shift 2
    if [ -e "$RUNS/$name/done" ]; then
        echo "$name: done"
        return
    fi
    echo "$name: training"
    mkdir -p "$RUNS"
    "$BIN/unified" train "$config" --out "$RUNS/$name" --resume "$@"
    touch "$RUNS/$name/done"
}

# measure NAME TITLE
measure() {
    local row=$RUNS/$1/row.md
    if [ ! -s "$row" ]; then
        echo "$1: measuring"
        "$BIN/eval" pictures --model "$RUNS/$1" --classifier "$RUNS/classifier" --photos "$PHOTOS" --row "$2" > "$row.new"
        mv "$row.new" "$row"
    fi
    cat "$row" >> "$RUNS/table.new"
}

if [ "$QLIP" = "$RUNS/qlip2" ]; then
    train qlip1 configs/ablation/stage1.toml
    train qlip2 configs/ablation/stage2.toml --set "start=$RUNS/qlip1"
fi
train classifier $HERE/classifier.toml
train vq $HERE/vq.toml
train llamagen-vq $HERE/llamagen-vq.toml --set "tokenizer=$RUNS/vq"
train llamagen-qlip $HERE/llamagen-qlip.toml --set "tokenizer=$QLIP"
train llamagen-bits $HERE/llamagen-bits.toml --set "tokenizer=$QLIP"

cat > "$RUNS/table.new" <<'HEAD'
| decoder on | parameters | tokens a picture | s a picture | asked class (classifier) | feature_frechet@classifier | tokenizer PSNR | classifier on photographs |
|---|---|---|---|---|---|---|---|
HEAD
measure llamagen-vq "VQ codes"
measure llamagen-qlip "QLIP, two sub-tokens"
measure llamagen-bits "QLIP, bits"
mv "$RUNS/table.new" "$RUNS/table.md"
cat "$RUNS/table.md"
