//! Writes a LLaVA checkpoint of any published size with random float16 weights, in shards, for measuring memory and
//! speed: `cargo run --release --example random_llava -- configs/llava/7b.json DIR`.

use half::f16;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use unified::artifact::ModelFiles;
use unified::llava::{LlavaConfig, VisionConfig};

type Shapes = BTreeMap<String, Vec<usize>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(config_path), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: random_llava CONFIG.json DIR".into());
    };
    let text = std::fs::read_to_string(&config_path)?;
    let config = LlavaConfig::parse(&config_path, &text)?;
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("config.json"), text)?;
    // the words do not matter to random weights
    std::fs::write(out.join("tokenizer.json"), ModelFiles::nano().read("tokenizer.json")?)?;
    let shards = shards(&config)?;
    let mut weight_map = BTreeMap::new();
    for (i, shapes) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write(&out.join(&name), shapes, i as u64)?;
        weight_map.extend(shapes.keys().map(|k| (k.clone(), name.clone())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
    std::fs::write(out.join("model.safetensors.index.json"), serde_json::to_vec_pretty(&index)?)?;
    println!("{}", out.display());
    Ok(())
}

/// One shard for the tower, projector and tables, one for each layer of the language model.
fn shards(config: &LlavaConfig) -> Result<Vec<Shapes>, Box<dyn std::error::Error>> {
    let VisionConfig::Clip(v) = &config.vision_config else { return Err("the config names no CLIP tower".into()) };
    let t = &config.text_config;
    let mut first = Shapes::new();
    let mut add = |name: String, shape: &[usize]| first.insert(name, shape.to_vec());
    let (d, f) = (v.hidden_size, v.intermediate_size);
    let tower = "vision_tower.vision_model";
    add(format!("{tower}.embeddings.class_embedding"), &[d]);
    add(format!("{tower}.embeddings.patch_embedding.weight"), &[d, v.num_channels, v.patch_size, v.patch_size]);
    add(format!("{tower}.embeddings.position_embedding.weight"), &[v.grid() * v.grid() + 1, d]);
    for norm in ["pre_layrnorm", "post_layernorm"] {
        add(format!("{tower}.{norm}.weight"), &[d]);
        add(format!("{tower}.{norm}.bias"), &[d]);
    }
    for i in 0..v.num_hidden_layers {
        let at = format!("{tower}.encoder.layers.{i}");
        for (name, rows, cols) in [
            ("self_attn.q_proj", d, d),
            ("self_attn.k_proj", d, d),
            ("self_attn.v_proj", d, d),
            ("self_attn.out_proj", d, d),
            ("mlp.fc1", f, d),
            ("mlp.fc2", d, f),
        ] {
            add(format!("{at}.{name}.weight"), &[rows, cols]);
            add(format!("{at}.{name}.bias"), &[rows]);
        }
        for norm in ["layer_norm1", "layer_norm2"] {
            add(format!("{at}.{norm}.weight"), &[d]);
            add(format!("{at}.{norm}.bias"), &[d]);
        }
    }
    let (w, f) = (t.hidden_size, t.intermediate_size);
    for (i, from) in [(1, d), (2, w)] {
        add(format!("multi_modal_projector.linear_{i}.weight"), &[w, from]);
        add(format!("multi_modal_projector.linear_{i}.bias"), &[w]);
    }
    add("language_model.model.embed_tokens.weight".into(), &[t.vocab_size, w]);
    add("language_model.lm_head.weight".into(), &[t.vocab_size, w]);
    add("language_model.model.norm.weight".into(), &[w]);
    let kv = t.kv_heads() * t.head_width();
    let layers = (0..t.num_hidden_layers).map(|i| {
        let shapes = [
            ("self_attn.q_proj", vec![w, w]),
            ("self_attn.k_proj", vec![kv, w]),
            ("self_attn.v_proj", vec![kv, w]),
            ("self_attn.o_proj", vec![w, w]),
            ("mlp.gate_proj", vec![f, w]),
            ("mlp.up_proj", vec![f, w]),
            ("mlp.down_proj", vec![w, f]),
            ("input_layernorm", vec![w]),
            ("post_attention_layernorm", vec![w]),
        ];
        shapes
            .into_iter()
            .map(|(name, shape)| (format!("language_model.model.layers.{i}.{name}.weight"), shape))
            .collect()
    });
    Ok(std::iter::once(first).chain(layers).collect())
}

fn write(path: &Path, shapes: &Shapes, seed: u64) -> Result<(), Box<dyn std::error::Error>> {
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .iter()
        .enumerate()
        .map(|(n, (name, shape))| {
            // norms near 1, all else uniform with deviation 0.02
            let (middle, width) =
                if name.contains("norm") && name.ends_with("weight") { (1.0, 0.0) } else { (0.0, 0.07) };
            let key = nn::rng::mix(seed << 32 | n as u64);
            let mut bytes = vec![0u8; 2 * shape.iter().product::<usize>()];
            bytes.par_chunks_exact_mut(2).enumerate().for_each(|(i, b)| {
                let unit = (nn::rng::mix(key ^ i as u64) >> 40) as f32 / (1 << 24) as f32 - 0.5;
                b.copy_from_slice(&f16::from_f32(middle + width * unit).to_le_bytes());
            });
            (name.clone(), shape.clone(), bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F16, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), path)?;
    Ok(())
}
