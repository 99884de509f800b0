"""llama.cpp on a random model of the shape llama-3.2-1b, for docs/performance.md: what `unified bench` is compared with.

    pip install gguf numpy llama-cpp-python
    python configs/peers/measure_llama_cpp.py bf16 q8_0 q4_K [--threads 2] [--repeats 5]

Prints one JSON object a line: milliseconds of a step of n tokens, or of a prompt, the median of the repeats."""
import argparse, ctypes, json, os, sys, tempfile, time
import numpy as np, gguf, llama_cpp

D, F, LAYERS, HEADS, KV, HD, VOCAB = 2048, 8192, 16, 32, 8, 64, 128256
rng = np.random.default_rng(0)

def block(kind, rows, cols):
    """Random bytes of a weight in GGUF's layout."""
    if kind == "bf16":
        x = (rng.standard_normal((rows, cols), dtype=np.float32) * 0.02).view(np.uint32)
        return (x >> 16).astype(np.uint16).view(np.uint8), gguf.GGMLQuantizationType.BF16
    if kind == "q8_0":
        b = rng.integers(0, 256, (rows, cols // 32, 34), dtype=np.uint8)
        b[..., 0:2] = np.frombuffer(np.float16(2e-4).tobytes(), np.uint8)
        return b.reshape(rows, -1), gguf.GGMLQuantizationType.Q8_0
    b = rng.integers(0, 256, (rows, cols // 256, 144), dtype=np.uint8)
    b[..., 0:2] = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
    b[..., 2:4] = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
    return b.reshape(rows, -1), gguf.GGMLQuantizationType.Q4_K

def write(path, kind):
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(8192); w.add_embedding_length(D); w.add_block_count(LAYERS); w.add_feed_forward_length(F)
    w.add_head_count(HEADS); w.add_head_count_kv(KV); w.add_layer_norm_rms_eps(1e-5); w.add_rope_freq_base(500000.0)
    w.add_rope_dimension_count(HD); w.add_vocab_size(VOCAB); w.add_tokenizer_model("no_vocab")
    def add(name, rows, cols):
        data, ty = block(kind, rows, cols)
        w.add_tensor(name, data, raw_dtype=ty)
    add("token_embd.weight", VOCAB, D)
    w.add_tensor("output_norm.weight", np.ones(D, np.float32))
    for i in range(LAYERS):
        for n in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{n}.weight", np.ones(D, np.float32))
        for n, r, c in (("attn_q", D, D), ("attn_k", KV * HD, D), ("attn_v", KV * HD, D), ("attn_output", D, D),
                        ("ffn_gate", F, D), ("ffn_up", F, D), ("ffn_down", D, F)):
            add(f"blk.{i}.{n}.weight", r, c)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()

def main():
    p = argparse.ArgumentParser()
    p.add_argument("kinds", nargs="+"); p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--prompts", type=int, nargs="*", default=[128, 1024]); p.add_argument("--repeats", type=int, default=5); p.add_argument("--dir", default=tempfile.gettempdir())
    a = p.parse_args()
    llama_cpp.llama_backend_init()
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(log, None)
    for kind in a.kinds:
        path = os.path.join(a.dir, f"peer-1b-{kind}.gguf")
        if not os.path.exists(path):
            write(path, kind)
        clock = time.perf_counter()
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        load = time.perf_counter() - clock
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 4096, 1024, 512, 16
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = a.threads
        ctx = llama_cpp.llama_init_from_model(model, params)
        memory = llama_cpp.llama_get_memory(ctx)
        def run(tokens):
            """tokens: (token, position, sequence, wants logits)"""
            batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
            batch.n_tokens = len(tokens)
            for i, (t, pos, seq, logits) in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = t, pos, 1, logits
                batch.seq_id[i][0] = seq
            clock = time.perf_counter()
            assert llama_cpp.llama_decode(ctx, batch) == 0
            llama_cpp.llama_synchronize(ctx)
            t = time.perf_counter() - clock
            llama_cpp.llama_batch_free(batch)
            return t
        token = lambda: int(rng.integers(0, VOCAB))
        out = {"kind": kind, "threads": a.threads, "load_s": round(load, 3)}
        for n in (1, 2, 8):
            llama_cpp.llama_memory_clear(memory, True)
            for s in range(n):
                run([(token(), i, s, i == 31) for i in range(32)])
            times = [run([(token(), 32 + k, s, True) for s in range(n)]) for k in range(24 * a.repeats // 3)]
            out[f"decode_{n}_ms"] = round(1e3 * float(np.median(times[2:])), 2)
        for n in a.prompts:
            times = []
            for _ in range(a.repeats + 1):
                llama_cpp.llama_memory_clear(memory, True)
                times.append(run([(token(), i, 0, i == n - 1) for i in range(n)]))
            out[f"prefill_{n}_tokens_per_s"] = round(n / float(np.median(times[1:])), 1)
        print(json.dumps(out), flush=True)
        llama_cpp.llama_free(ctx); llama_cpp.llama_model_free(model)

main()
