"""Loss curves of metrics.jsonl files as an SVG: python docs/curves.py OUT.svg KEY NAME=FILE [NAME=FILE ...]"""
import json, sys

out, key, *files = sys.argv[1:]
W, H, L, B = 640, 300, 56, 36
series = []
for f in files:
    name, path = f.split("=", 1)
    points = [(d["step"], d[key]) for d in map(json.loads, open(path)) if key in d]
    n = max(1, len(points) // 120)
    series.append((name, [(points[i][0], sum(p[1] for p in points[i:i + n]) / len(points[i:i + n])) for i in range(0, len(points), n)]))
xs = [p[0] for _, s in series for p in s]
ys = sorted(p[1] for _, s in series for p in s)
top, low = ys[int(0.98 * (len(ys) - 1))], ys[0]
x = lambda v: L + (W - L - 10) * v / max(xs)
y = lambda v: 10 + (H - B - 10) * (1 - (min(v, top) - low) / (top - low or 1))
colours = ["#0b5cad", "#b35900", "#2a8a3e", "#7a3fb0", "#b0306a", "#5a6a00"]
svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" font-family="sans-serif" font-size="12">',
       f'<rect width="{W}" height="{H}" fill="#fff"/>']
for i in range(5):
    v = low + (top - low) * i / 4
    svg.append(f'<line x1="{L}" x2="{W-10}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/><text x="{L-6}" y="{y(v)+4:.1f}" text-anchor="end">{v:.3f}</text>')
    s = max(xs) * i / 4
    svg.append(f'<text x="{x(s):.1f}" y="{H-18}" text-anchor="middle">{s:.0f}</text>')
svg.append(f'<text x="{W/2}" y="{H-4}" text-anchor="middle">updates; {key}</text>')
for (name, s), c in zip(series, colours):
    svg.append(f'<polyline fill="none" stroke="{c}" stroke-width="1.6" points="{" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in s)}"/>')
    svg.append(f'<text x="{W-16}" y="{24 + 16 * colours.index(c)}" text-anchor="end" fill="{c}">{name}</text>')
open(out, "w").write("\n".join(svg) + "</svg>\n")
