# What the scripts share that train and measure whole tables unattended; they set `runs` and source this.
mkdir -p "$runs"
cargo build --release --quiet --workspace --bins --examples
# trainings that go on stay with the program that began them
[ -e "$runs/unified" ] || cp target/release/unified "$runs/"

# xargs starts nothing more after 255
failed() {
  echo "$1: $(tail -n1 "$1")" >&2
  exit 255
}

# train NAME CONFIG [KEY=VALUE ..]: one training on one core, unless it is done
train() {
  local name=$1 config=$2 set=()
  shift 2
  for pair in "$@"; do set+=(--set "$pair"); done
  [ -e "$runs/$name/summary.json" ] && return
  RAYON_NUM_THREADS=1 "$runs/unified" train "$config" --out "$runs/$name" --resume "${set[@]}" 2>"$runs/$name.log" ||
    failed "$runs/$name.log"
}

# each COMMAND ..: all of them, a core each
each() { printf '%s\0' "$@" | xargs -0 -P "$(nproc)" -I{} bash -euo pipefail -c '{}'; }

export -f train failed
export runs
