//! Tensor names of Janus's two layouts. Ours are the authors', but for the vision tower's, which are transformers'.

use nn::Result;
use nn::stored::Stored;
use qlip::vq::{DecoderLevels, llamagen_name};

/// Beginnings of names as transformers writes them, and ours.
const TRANSFORMERS: [(&str, &str); 8] = [
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_model.", "vision_model."),
    ("model.aligner.", "aligner."),
    ("model.generation_embeddings.", "gen_embed."),
    ("model.generation_aligner.", "gen_aligner."),
    ("model.generation_head.proj_out.", "gen_head.output_mlp_projector."),
    ("model.generation_head.vision_head.", "gen_head.vision_head."),
];

/// Parts of the authors' names of the vision tower, and transformers'.
const TOWER: [(&str, &str); 7] = [
    ("vision_model.vision_tower.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("vision_model.vision_tower.pos_embed", "vision_model.embeddings.position_embedding.weight"),
    ("vision_model.vision_tower.norm.", "vision_model.post_layernorm."),
    ("vision_model.vision_tower.blocks.", "vision_model.encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.out_proj."),
];

/// Our name of a tensor of either layout.
pub fn published_name(name: &str) -> String {
    if name.starts_with("vision_model.vision_tower.") {
        return TOWER.iter().fold(name.to_owned(), |n, (from, to)| n.replace(from, to));
    }
    if let Some(rest) = name.strip_prefix("model.vqmodel.") {
        return format!("gen_vision_model.{}", llamagen_name(rest, DecoderLevels::FromCoarsest));
    }
    let Some(name) = TRANSFORMERS.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
    else {
        return name.to_owned();
    };
    let name = name.replace(".self_attn.projection_layer.", ".self_attn.out_proj.");
    if !name.contains("aligner.") {
        return name;
    }
    // linear layers with an activation between them, as the authors number them
    let name = name.replace(".fc1.", ".layers.0.");
    match name.split_once(".hidden_layers.").and_then(|(a, b)| Some((a, b.split_once('.')?))) {
        Some((a, (n, rest))) => match n.parse::<usize>() {
            Ok(n) => format!("{a}.layers.{}.{rest}", 2 * (n + 1)),
            Err(_) => name,
        },
        None => name,
    }
}

/// Tensors of either layout under our names; queries, keys and values apart. What the model does not use is left out.
pub fn ours(stored: Stored) -> Result<Stored> {
    let unused = ["vision_model.vision_tower.attn_pool.", "gen_vision_model.quantize.codebook_used"];
    let stored = stored.filtered(|n| !unused.iter().any(|u| n.starts_with(u)));
    let mut stored = stored.renamed(published_name);
    let joined: Vec<String> =
        stored.shapes().iter().filter(|s| s.0.contains(".attn.qkv.")).map(|s| s.0.to_owned()).collect();
    for name in joined {
        let part = |p: &str| name.replace(".attn.qkv.", &format!(".self_attn.{p}_proj."));
        stored.split_rows(&name, &["q", "k", "v"].map(part))?;
    }
    Ok(stored)
}
