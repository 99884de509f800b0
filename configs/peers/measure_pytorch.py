"""PyTorch on the shapes of `unified bench`, for docs/performance.md: prefill of llama-3.2-1b, encode, decode and a training step
of QLIP-B/16, random weights.

    pip install torch numpy
    python configs/peers/measure_pytorch.py [--threads 2] [--repeats 3]

Prints one JSON object a line; medians."""
import argparse, json, os, resource, time
import torch, torch.nn as nn, torch.nn.functional as F

def median(f, n):
    f()
    ts = []
    for _ in range(n):
        c = time.perf_counter(); f(); ts.append(time.perf_counter() - c)
    return sorted(ts)[len(ts) // 2]

def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

class LlamaBlock(nn.Module):
    def __init__(s, d, f, h, kv, hd):
        super().__init__()
        s.h, s.kv, s.hd = h, kv, hd
        lin = lambda i, o: nn.Linear(i, o, bias=False)
        s.q, s.k, s.v, s.o = lin(d, h * hd), lin(d, kv * hd), lin(d, kv * hd), lin(h * hd, d)
        s.gate, s.up, s.down = lin(d, f), lin(d, f), lin(f, d)
        s.n1, s.n2 = nn.RMSNorm(d), nn.RMSNorm(d)
    def forward(s, x, cos, sin):
        b, t, _ = x.shape
        y = s.n1(x)
        q = s.q(y).view(b, t, s.h, s.hd).transpose(1, 2)
        k = s.k(y).view(b, t, s.kv, s.hd).transpose(1, 2)
        v = s.v(y).view(b, t, s.kv, s.hd).transpose(1, 2)
        y = F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v, is_causal=True, enable_gqa=True)
        x = x + s.o(y.transpose(1, 2).reshape(b, t, -1))
        y = s.n2(x)
        return x + s.down(F.silu(s.gate(y)) * s.up(y))

class TowerBlock(nn.Module):
    def __init__(s, d, f, h):
        super().__init__()
        s.h = h
        s.q, s.k, s.v, s.o = nn.Linear(d, d), nn.Linear(d, d, bias=False), nn.Linear(d, d), nn.Linear(d, d)
        s.w1, s.w2, s.w3 = nn.Linear(d, f), nn.Linear(d, f), nn.Linear(f, d)
        s.n1, s.n2, s.ni, s.nf = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(f)
    def forward(s, x, cos, sin):
        b, t, d = x.shape
        y = s.n1(x)
        q, k, v = (p(y).view(b, t, s.h, -1).transpose(1, 2) for p in (s.q, s.k, s.v))
        y = F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v)
        x = x + s.o(s.ni(y.transpose(1, 2).reshape(b, t, d)))
        y = s.n2(x)
        return x + s.w3(s.nf(F.silu(s.w1(y)) * s.w2(y)))

class Tokenizer(nn.Module):
    """QLIP-B/16 without its text tower's words: tower, 28 signs, pixel decoder, and a text tower."""
    def __init__(s, d=768, f=2048, h=12, n=12, grid=16, patch=16):
        super().__init__()
        s.patch = nn.Conv2d(3, d, patch, patch)
        s.enc = nn.ModuleList(TowerBlock(d, f, h) for _ in range(n))
        s.dec = nn.ModuleList(TowerBlock(d, f, h) for _ in range(n))
        s.to_bits, s.from_bits, s.out = nn.Linear(d, 28), nn.Linear(28, d), nn.Linear(d, patch * patch * 3)
        layer = nn.TransformerEncoderLayer(512, 8, 2048, 0.0, "gelu", batch_first=True, norm_first=True)
        s.text, s.words = nn.TransformerEncoder(layer, 12), nn.Embedding(49408, 512)
        s.pi, s.pt = nn.Linear(d, 512), nn.Linear(512, 512, bias=False)
        a = torch.rand(grid * grid, d // h // 2)
        s.register_buffer("cos", a.cos()); s.register_buffer("sin", a.sin())
    def encode(s, x):
        x = s.patch(x).flatten(2).transpose(1, 2)
        for b in s.enc: x = b(x, s.cos, s.sin)
        return x, F.normalize(s.to_bits(x), dim=-1)
    def decode(s, q):
        y = s.from_bits(q)
        for b in s.dec: y = b(y, s.cos, s.sin)
        return s.out(y)

def main():
    p = argparse.ArgumentParser()
    p.add_argument("--threads", type=int, default=os.cpu_count()); p.add_argument("--repeats", type=int, default=3)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    say = lambda **k: print(json.dumps({"torch": torch.__version__, "threads": a.threads, **k}), flush=True)
    t = Tokenizer()
    x = torch.rand(4, 3, 256, 256)
    with torch.no_grad():
        q = torch.sign(t.encode(x)[1])
        say(job="qlip-b16 encode", pictures_per_s=4 / median(lambda: t.encode(x), a.repeats))
        say(job="qlip-b16 decode", pictures_per_s=4 / median(lambda: t.decode(q), a.repeats))
    opt = torch.optim.AdamW(t.parameters(), 1e-5)
    ids = torch.randint(0, 49408, (4, 77))
    def step():
        opt.zero_grad()
        h, l = t.encode(x)
        q = l + (torch.sign(l) - l).detach()
        y = t.decode(q)
        img, txt = t.pi(h.mean(1)), t.pt(t.text(t.words(ids))[:, -1])
        target = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(4, 256, -1)
        loss = (y - target).square().mean() + F.cross_entropy(img @ txt.T, torch.arange(4))
        loss.backward(); opt.step()
    s = median(step, a.repeats)
    say(job="qlip-b16 train-step", pictures_per_s=4 / s, peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    del t, opt
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            blocks = nn.ModuleList(LlamaBlock(2048, 8192, 32, 8, 64) for _ in range(16)).to(dtype)
            for n in (128, 1024):
                angle = torch.rand(n, 32, dtype=dtype)
                x = torch.randn(1, n, 2048, dtype=dtype)
                def run():
                    y = x
                    for b in blocks: y = b(y, angle.cos(), angle.sin())
                say(job=f"llama-3.2-1b prefill {n} {dtype}", tokens_per_s=n / median(run, a.repeats))

main()
