//! config.json of Chameleon as transformers writes it.

use crate::code_rows::CodeRows;
use crate::{Error, Result};
use lm::{LlamaConfig, Token};
use nn::block::{BlockConfig, QkNorm};
use qlip::config::parse_json;
use qlip::vq::VqConfig;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

/// What a Chameleon is made of.
#[derive(Debug, Clone)]
pub struct ChameleonConfig {
    /// The language model; its blocks differ ([`Self::block`]).
    pub text: LlamaConfig,
    /// Norms after attention and feed-forward, as the 30B has them.
    pub swin_norm: bool,
    /// The image tokenizer.
    pub vq: VqConfig,
    /// Pixels along a picture's side.
    pub resolution: usize,
    /// Entries of the vocabulary by their writing.
    pub vocabulary: HashMap<String, Token>,
    /// Codes among them.
    pub codes: CodeRows,
}

/// Old names of the image tokenizer's keys, and new ones.
const RENAMED: [(&str, &str); 5] = [
    ("ch", "base_channels"),
    ("ch_mult", "channel_multiplier"),
    ("n_embed", "num_embeddings"),
    ("z_channels", "latent_channels"),
    ("double_z", "double_latent"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Vq {
    attn_type: String,
    double_latent: bool,
    dropout: f32,
    in_channels: usize,
    out_channels: usize,
    embed_dim: usize,
    num_embeddings: usize,
    latent_channels: usize,
    resolution: usize,
    base_channels: usize,
    channel_multiplier: Vec<usize>,
    num_res_blocks: usize,
    attn_resolutions: Option<Vec<usize>>,
    initializer_range: Option<f32>,
    model_type: Option<String>,
}

impl Default for Vq {
    fn default() -> Self {
        Self {
            attn_type: "vanilla".into(),
            double_latent: false,
            dropout: 0.0,
            in_channels: 3,
            out_channels: 3,
            embed_dim: 256,
            num_embeddings: 8192,
            latent_channels: 256,
            resolution: 512,
            base_channels: 128,
            channel_multiplier: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            attn_resolutions: None,
            initializer_range: None,
            model_type: None,
        }
    }
}

impl ChameleonConfig {
    /// From the text of a config.json.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let bad = |why: String| Error::bad_file(path, why);
        let mut json: serde_json::Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        let root = json.as_object_mut().ok_or_else(|| bad("not an object".into()))?;
        let vocabulary: HashMap<String, Token> = match root.remove("vocabulary_map") {
            Some(map) => serde_json::from_value(map).map_err(|e| bad(format!("vocabulary_map: {e}")))?,
            None => return Err(bad("vocabulary_map is missing: it says which entries are codes".into())),
        };
        let mut vq = root.remove("vq_config").unwrap_or_else(|| serde_json::json!({}));
        if let Some(vq) = vq.as_object_mut() {
            for (old, new) in RENAMED {
                if let Some(value) = vq.remove(old) {
                    vq.entry(new).or_insert(value);
                }
            }
        }
        let vq: Vq = serde_json::from_value(vq).map_err(|e| bad(format!("vq_config: {e}")))?;
        if vq.attn_type != "vanilla" || vq.double_latent || (vq.in_channels, vq.out_channels) != (3, 3) {
            let why =
                "vq_config: attn_type other than vanilla, double_latent and channels other than 3 are not known here";
            return Err(bad(why.into()));
        }
        let _ = (vq.dropout, vq.initializer_range, vq.model_type);
        let swin_norm = root.remove("swin_norm").is_some_and(|v| v == true);
        // where the weights were cut is of no matter: norms of queries and keys are stored head by head
        root.remove("model_parallel_size");
        root.remove("image_token_id");
        root.insert("model_type".into(), "llama".into());
        // the config says 1, which is the pad; the tokenizer's is right
        root.remove("bos_token_id");
        root.remove("mask_image_logits");
        let text: LlamaConfig = parse_json(path, &json.to_string())?;
        let levels = vq.channel_multiplier.len();
        let attends = |level: &usize| {
            let side = vq.resolution >> level;
            vq.attn_resolutions.as_ref().is_some_and(|all| all.contains(&side))
        };
        let config = Self {
            vq: VqConfig {
                codebook_size: vq.num_embeddings,
                codebook_embed_dim: vq.embed_dim,
                codebook_l2_norm: false,
                encoder_ch_mult: vq.channel_multiplier.clone(),
                decoder_ch_mult: vq.channel_multiplier.clone(),
                z_channels: vq.latent_channels,
                ch: vq.base_channels,
                num_res_blocks: vq.num_res_blocks,
                attn_levels: Some((0..levels).filter(attends).collect()),
                ..VqConfig::default()
            },
            resolution: vq.resolution,
            codes: codes(&vocabulary, vq.num_embeddings).map_err(|e| bad(e.to_string()))?,
            swin_norm,
            vocabulary,
            text,
        };
        config.text.check().and_then(|()| config.vq.check()).map_err(|e| bad(e.to_string()))?;
        if config.vocabulary.values().any(|&id| id as usize >= config.text.vocab_size) {
            return Err(bad(format!("vocabulary_map has entries beyond vocab_size {}", config.text.vocab_size)));
        }
        Ok(config)
    }

    /// A block: Llama's with a norm of each head's queries and keys.
    pub fn block(&self) -> BlockConfig {
        // the authors' epsilon is fixed
        BlockConfig { qk_norm: Some(QkNorm::LayerByHead(1e-5)), norm_after: self.swin_norm, ..self.text.block() }
    }

    /// Codes along a picture's side.
    pub fn grid(&self) -> usize {
        self.resolution / self.vq.stride()
    }

    /// An entry by one of its writings.
    pub fn mark(&self, writings: &[&str]) -> Result<Token> {
        let found = writings.iter().find_map(|w| self.vocabulary.get(*w));
        found.copied().ok_or_else(|| Error::invalid(format!("vocabulary_map has no entry `{}`", writings[0])))
    }

    /// Entries that are no words: codes, and what begins with "<" but is not that letter.
    pub fn not_words(&self) -> Vec<Token> {
        let mark = |(w, _): &(&String, &Token)| w.starts_with('<') && w.as_str() != "<";
        let marks = self.vocabulary.iter().filter(mark).map(|(_, &id)| id);
        let named: std::collections::HashSet<Token> = self.vocabulary.values().copied().collect();
        // rows without an entry are padding of the table
        let nameless = (0..self.text.vocab_size as Token).filter(|id| !named.contains(id));
        marks.chain(self.codes.tokens().iter().copied()).chain(nameless).collect()
    }
}

/// Code i is written IMGIMG, its digits as letters (A is 0), Z.
fn codes(vocabulary: &HashMap<String, Token>, count: usize) -> Result<CodeRows> {
    let letter = |digit: u8| char::from(digit - b'0' + b'A');
    let token = |code: usize| {
        let digits: String = code.to_string().bytes().map(letter).collect();
        let name = format!("IMGIMG{digits}Z");
        let id = vocabulary.get(&name).copied();
        id.ok_or_else(|| Error::invalid(format!("vocabulary_map has no entry `{name}` for code {code}")))
    };
    Ok(CodeRows::new((0..count).map(token).collect::<Result<_>>()?))
}
