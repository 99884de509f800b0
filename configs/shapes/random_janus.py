"""A Janus-Pro-1B of random bfloat16 weights in its authors' layout (pytorch_model.bin as torch.save writes it), for measuring.

    cargo run --release -p unified --example random_llamagen -- B /tmp/llamagen      # VQ-16's names and shapes
    pip install numpy && python configs/shapes/random_janus.py /tmp/llamagen/vq/model.safetensors OUT

torch is not needed: the pickle is made of stand-ins for its names."""
import collections, io, json, os, pickle, struct, sys, types, zipfile
import numpy as np

vq, out = sys.argv[1:]
os.makedirs(out, exist_ok=True)
D, F, LAYERS, VOCAB, V, VF, VL = 2048, 5632, 24, 102400, 1024, 4096, 24

shapes = collections.OrderedDict()
def linear(name, rows, cols, bias=True):
    shapes[name + ".weight"] = (rows, cols)
    if bias: shapes[name + ".bias"] = (rows,)
t = "vision_model.vision_tower."
shapes[t + "patch_embed.proj.weight"] = (V, 3, 16, 16); shapes[t + "patch_embed.proj.bias"] = (V,)
shapes[t + "pos_embed"] = (1, 576, V)
for i in range(VL):
    b = f"{t}blocks.{i}."
    for n in ("norm1", "norm2"):
        shapes[b + n + ".weight"] = (V,); shapes[b + n + ".bias"] = (V,)
    linear(b + "attn.qkv", 3 * V, V); linear(b + "attn.proj", V, V); linear(b + "mlp.fc1", VF, V); linear(b + "mlp.fc2", V, VF)
shapes[t + "norm.weight"] = (V,); shapes[t + "norm.bias"] = (V,)
linear("aligner.layers.0", D, V); linear("aligner.layers.2", D, D)
linear("gen_aligner.layers.0", D, 8); linear("gen_aligner.layers.2", D, D)
shapes["gen_embed.weight"] = (16384, 8)
linear("gen_head.output_mlp_projector", D, D); linear("gen_head.vision_head", 16384, D)
m = "language_model.model."
shapes[m + "embed_tokens.weight"] = (VOCAB, D)
for i in range(LAYERS):
    b = f"{m}layers.{i}."
    for n in "qkvo": linear(f"{b}self_attn.{n}_proj", D, D, False)
    linear(b + "mlp.gate_proj", F, D, False); linear(b + "mlp.up_proj", F, D, False); linear(b + "mlp.down_proj", D, F, False)
    shapes[b + "input_layernorm.weight"] = (D,); shapes[b + "post_attention_layernorm.weight"] = (D,)
shapes[m + "norm.weight"] = (D,); linear("language_model.lm_head", VOCAB, D, False)
with open(vq, "rb") as f:
    head = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
for name, about in head.items():
    if name != "__metadata__": shapes["gen_vision_model." + name] = tuple(about["shape"])

# stand-ins for what torch's pickles name
for name in ("torch", "torch._utils"): sys.modules[name] = types.ModuleType(name)
class BFloat16Storage: pass
def _rebuild_tensor_v2(*a): raise NotImplementedError
BFloat16Storage.__module__ = "torch"; _rebuild_tensor_v2.__module__ = "torch._utils"
BFloat16Storage.__qualname__ = "BFloat16Storage"; _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
sys.modules["torch"].BFloat16Storage = BFloat16Storage; sys.modules["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
class Storage:
    def __init__(self, key, n): self.key, self.n = key, n
class Tensor:
    def __init__(self, storage, shape): self.storage, self.shape = storage, shape
    def __reduce__(self):
        stride, step = [], 1
        for d in reversed(self.shape): stride.insert(0, step); step *= d
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, tuple(stride), False, collections.OrderedDict())
class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage): return ("storage", BFloat16Storage, obj.key, "cpu", obj.n)
tensors = collections.OrderedDict((n, Tensor(Storage(str(i), int(np.prod(s))), s)) for i, (n, s) in enumerate(shapes.items()))
data = io.BytesIO(); Pickler(data, protocol=2).dump(tensors)

rng = np.random.default_rng(0)
def bf16(x): return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
pool = bf16(rng.standard_normal(1 << 22) * 0.02)
with zipfile.ZipFile(f"{out}/pytorch_model.bin", "w", zipfile.ZIP_STORED, allowZip64=True) as z:
    z.writestr("archive/data.pkl", data.getvalue()); z.writestr("archive/byteorder", "little")
    for i, (name, s) in enumerate(shapes.items()):
        n = int(np.prod(s))
        if name.endswith("norm.weight") or (name.endswith(".weight") and len(s) == 1): values = bf16(np.ones(n))
        elif len(s) == 1: values = bf16(np.zeros(n))
        else:
            start = int(rng.integers(0, len(pool)))
            values = np.resize(np.roll(pool, start), n) if n > len(pool) else np.roll(pool, start)[:n]
        with z.open(f"archive/data/{i}", "w", force_zip64=True) as f: f.write(values.tobytes())
    z.writestr("archive/version", "3\n")

config = {"model_type": "multi_modality", "torch_dtype": "bfloat16",
  "aligner_config": {"cls": "MlpProjector", "model_type": "aligner", "params": {"depth": 2, "input_dim": V, "n_embed": D, "projector_type": "mlp_gelu"}},
  "gen_aligner_config": {"cls": "MlpProjector", "model_type": "gen_aligner", "params": {"depth": 2, "input_dim": 8, "n_embed": D, "projector_type": "mlp_gelu"}},
  "gen_head_config": {"cls": "vision_head", "model_type": "gen_head", "params": {"image_token_embed": D, "image_token_size": 16384, "n_embed": D}},
  "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": {"image_token_size": 16384, "n_embed": 8}},
  "language_config": {"model_type": "llama", "max_position_embeddings": 16384, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS,
    "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": VOCAB, "torch_dtype": "bfloat16"},
  "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1}}}
json.dump(config, open(f"{out}/config.json", "w"), indent=1)
json.dump({"background_color": [127, 127, 127], "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "VLMImageProcessor",
  "image_size": 384, "min_size": 14, "processor_class": "VLChatProcessor", "rescale_factor": 1 / 255}, open(f"{out}/preprocessor_config.json", "w"))
json.dump({"add_special_token": False, "ignore_id": -100, "image_tag": "<image_placeholder>", "mask_prompt": True, "num_image_tokens": 576,
  "processor_class": "VLChatProcessor", "sft_format": "deepseek"}, open(f"{out}/processor_config.json", "w"))
# a text tokenizer of single bytes with the marks that Janus needs
letters = [c for c in range(33, 127)] + list(range(161, 173)) + list(range(174, 256))
table, n = {}, 0
for b in range(256):
    if b in letters: table[b] = chr(b)
    else: table[b] = chr(256 + n); n += 1
vocab = {table[b]: b for b in range(256)}
marks = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>"]
json.dump({"version": "1.0", "added_tokens": [{"id": 256 + i, "content": m, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i, m in enumerate(marks)],
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
  "model": {"type": "BPE", "vocab": vocab, "merges": []}}, open(f"{out}/tokenizer.json", "w"))
print(out, sum(int(np.prod(s)) for s in shapes.values()) / 1e9, "billion parameters")
