//! Janus's parts in one: tower and aligner for what it sees, table, aligner and head for the codes that it draws, one trunk.

use super::config::JanusConfig;
use super::names::ours;
use crate::artifact::{Artifact, Placement};
use crate::{Error, Result};
use candle_core::Tensor;
use lm::engine::{Choose, Model, Source};
use lm::trunk::Trunk;
use lm::vocab::table_rows;
use lm::{Context, Llama, Part, Request, SampleSettings, Token};
use nn::block::Linear;
use nn::ops::Activation;
use nn::{Init, Params, Weight, WeightType};
use qlip::siglip::SiglipTower;
use qlip::vq::VqTokenizer;
use qlip::{Image, Pixels};

/// The head of codes, by the engine's numbering; words are head 0.
pub const CODES: u8 = 1;

/// Linear layers with GELU between them.
struct Mlp(Vec<Linear>);

impl Mlp {
    fn new(p: &Params, input: usize, width: usize, depth: usize) -> Result<Self> {
        let layer =
            |i: usize| Linear::new(&p.at("layers").at(2 * i), if i == 0 { input } else { width }, width, true, 0.02);
        Ok(Self((0..depth).map(layer).collect::<Result<_>>()?))
    }
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, layer) in self.0.iter().enumerate() {
            let input = if i == 0 { x } else { Activation::Gelu.forward(&x)? };
            x = layer.by_rows(&input)?;
        }
        Ok(x)
    }
}

/// The model.
pub struct Janus {
    /// Its configuration.
    pub config: JanusConfig,
    /// The language model.
    pub lm: Llama,
    /// The tokenizer of what it draws.
    pub vq: VqTokenizer,
    tower: SiglipTower,
    aligner: Mlp,
    gen_embed: Weight,
    gen_aligner: Mlp,
    head_in: Linear,
    head_out: Linear,
}

impl Janus {
    /// Loads a folder of either layout.
    pub fn load(artifact: &Artifact, placement: &Placement) -> Result<Self> {
        let (stored, files) = (ours(artifact.tensors()?)?, &artifact.files);
        let config = JanusConfig::parse(&files.path_of("config.json"), &files.text("config.json")?, &stored)?;
        let origin = files.weights_path().display().to_string();
        let params = Params::from_tensors(origin, stored, placement.dtype, &placement.device);
        Self::new(&params.stored_as(placement.weights), &config)
    }

    /// Takes the tensors, under our names.
    pub fn new(p: &Params, config: &JanusConfig) -> Result<Self> {
        // blocks are for the words; what is seen and drawn stays exact
        let exact = p.clone().stored_as(p.weights().map(WeightType::for_pictures));
        let (d, v, q) = (config.text.hidden_size, &config.vision, &config.vq);
        let head = exact.at("gen_head");
        let table = (q.codebook_size, q.codebook_embed_dim);
        Ok(Self {
            lm: Llama::new(&p.at("language_model"), &config.text)?,
            tower: SiglipTower::new(&exact.at("vision_model"), v)?,
            aligner: Mlp::new(&exact.at("aligner"), v.hidden_size, d, config.aligner_depth)?,
            gen_embed: exact.at("gen_embed").weight(table, "weight", Init::Normal(0.02))?,
            gen_aligner: Mlp::new(&exact.at("gen_aligner"), q.codebook_embed_dim, d, config.gen_aligner_depth)?,
            head_in: Linear::new(&head.at("output_mlp_projector"), d, config.gen_head_width, true, 0.02)?,
            head_out: Linear::new(&head.at("vision_head"), config.gen_head_width, q.codebook_size, true, 0.02)?,
            vq: VqTokenizer::new(&exact.at("gen_vision_model"), q)?,
            config: config.clone(),
        })
    }

    /// Tokens that a seen picture becomes.
    pub fn tokens_per_picture(&self) -> usize {
        self.config.vision.tokens()
    }

    /// Codes of a drawn picture.
    pub fn codes_per_picture(&self) -> usize {
        self.config.grid * self.config.grid
    }

    /// Hidden states of the tower, and the last one normed; [pictures, tokens, width] each.
    pub fn see(&self, pixels: &Pixels) -> Result<(Vec<Tensor>, Tensor)> {
        self.tower.forward(pixels)
    }

    /// What the tower sees in the language model's width.
    pub fn project(&self, seen: &Tensor) -> Result<Tensor> {
        self.aligner.forward(seen)
    }

    /// Embeddings [codes, width] of drawn codes.
    pub fn embed_codes(&self, codes: &[Token]) -> Result<Tensor> {
        let n = self.config.vq.codebook_size;
        if let Some(bad) = codes.iter().find(|&&c| c as usize >= n) {
            return Err(Error::invalid(format!("code {bad} is outside the codebook of {n}")));
        }
        self.gen_aligner.forward(&self.gen_embed.rows(&table_rows(codes)?)?)
    }

    /// Logits [.., codes] of hidden states [.., width].
    pub fn code_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head_out.by_rows(&Activation::Gelu.forward(&self.head_in.by_rows(hidden)?)?)
    }

    /// A request that draws a picture after a prompt that ends with the begin mark. Without guidance's scale the prompt alone is
    /// read; with it a second context, in which everything but the prompt's first and last token is `pad`.
    pub fn drawing(
        &self,
        prompt: &[Token],
        pad: Token,
        scale: f32,
        sample: SampleSettings,
        seed: (u64, u64),
    ) -> Request {
        let source = Source { head: CODES, start: 0, rows: self.config.vq.codebook_size as u32 };
        let grammar = lm::engine::in_turn(vec![source; self.codes_per_picture()]);
        let context = |ids: Vec<Token>| Context::new(vec![Part::tokens(ids)]);
        let request = Request::new(context(prompt.to_vec()), sample, seed, grammar);
        if scale == 1.0 {
            return request;
        }
        let last = prompt.len().saturating_sub(1);
        let uncond = prompt.iter().enumerate().map(|(i, &t)| if i == 0 || i == last { t } else { pad }).collect();
        request.guided(context(uncond), move |_| Some(scale))
    }

    /// Pictures of their codes, row by row.
    pub fn paint(&self, codes: &[Token]) -> Result<Vec<Image>> {
        let grid = self.config.grid;
        let pixels = self.vq.decode(&self.vq.look_up(&table_rows(codes)?, grid, grid)?)?;
        pixels.to_images()
    }
}

impl Model for Janus {
    fn trunk(&self) -> &Trunk {
        Model::trunk(&self.lm)
    }
    fn embed(&self, head: u8, tokens: &[Token]) -> Result<Tensor> {
        if head == CODES { self.embed_codes(tokens) } else { Model::embed(&self.lm, head, tokens) }
    }
    fn next(&self, source: Source, hidden: &Tensor, choose: &mut Choose) -> Result<Vec<Token>> {
        if source.head == CODES {
            return Ok(choose(&self.code_logits(hidden)?)?.into_iter().map(Token::from).collect());
        }
        self.lm.next(source, hidden, choose)
    }
}
