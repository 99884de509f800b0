"""`unified bench` beside llama.cpp on one machine in one run, each several times in turn, medians: the table of
docs/performance.md.

    python configs/peers/compare.py [--rounds 3]        (after measure_llama_cpp.py's installs and cargo build --release)"""
import argparse, json, statistics as st, subprocess, sys

p = argparse.ArgumentParser()
p.add_argument("--rounds", type=int, default=3); p.add_argument("--unified", default="target/release/unified")
p.add_argument("--threads", default="2"); p.add_argument("--prompts", nargs="*", default=["128", "1024"])
a = p.parse_args()
ours, theirs, read = {}, {}, []
def bench(key, *args):
    out = subprocess.run([a.unified, "bench", *args, "--shape", "llama-3.2-1b", "--repeats", "5", "--json"], capture_output=True, text=True)
    j = json.loads(out.stdout); ours.setdefault(key, []).append(j["value"]); read.append(j["ceiling_gb_per_s"])
for r in range(a.rounds):
    for kind in ("bf16", "q8_0", "q4_K"):
        for n in (1, 2, 8):
            bench((kind, f"decode {n}"), "decode", "--dtype", kind, "--batch", str(n))
        prompts = a.prompts if r == 0 else []
        for n in prompts:
            bench((kind, f"prefill {n}"), "prefill", "--dtype", kind, "--prompt", n)
        out = subprocess.run([sys.executable, "configs/peers/measure_llama_cpp.py", kind, "--threads", a.threads, "--repeats", "5", "--dir", "/tmp", "--prompts", *prompts], capture_output=True, text=True)
        j = json.loads(out.stdout.strip().splitlines()[-1])
        for n in (1, 2, 8):
            theirs.setdefault((kind, f"decode {n}"), []).append(1e3 * n / j[f"decode_{n}_ms"])
        for n in prompts:
            theirs.setdefault((kind, f"prefill {n}"), []).append(j[f"prefill_{n}_tokens_per_s"])
print("| job | unified, tokens/s | llama.cpp, tokens/s | ratio |\n|---|---|---|---|")
for k in ours:
    u, l = st.median(ours[k]), st.median(theirs[k])
    print(f"| {k[1]}, {k[0]} | {u:.1f} | {l:.1f} | {u / l:.2f} |")
print(f"\na long read: {min(read):.0f} to {max(read):.0f} GB/s while this ran")
