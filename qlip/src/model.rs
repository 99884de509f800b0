//! The whole model: towers, quantizer, decoder, projections.

use crate::bsq::{Bsq, Latents, unit};
use crate::codes::Codes;
use crate::config::QlipConfig;
use crate::decoder::PixelDecoder;
use crate::image::Pixels;
use crate::text::TextTower;
use crate::vision::{Bottleneck, VisionOutput, VisionTower};
use candle_core::{DType, Device, Tensor};
use nn::block::Linear;
use nn::{Error, Init, Params, Result};
use std::path::Path;

/// QLIP with the published tensor names.
#[derive(Debug, Clone)]
pub struct Qlip {
    /// Its configuration.
    pub config: QlipConfig,
    /// Vision tower.
    pub vision: VisionTower,
    /// Text tower; absent where it was dropped (stage 2).
    pub text: Option<TextTower>,
    /// Quantizer.
    pub bsq: Bsq,
    quant_embed_post: Option<Bottleneck>,
    decoder: PixelDecoder,
    visual_projection: Linear,
    text_projection: Option<Linear>,
    /// Logarithm of the similarity's scale, scalar.
    pub logit_scale: Tensor,
}

impl Qlip {
    /// A checkpoint's folder, for what it sees in pictures: float32, without the text side and outside of any training.
    pub fn seeing(dir: &Path, device: &Device) -> Result<Self> {
        let config = QlipConfig::from_file(&dir.join("config.json"))?;
        Self::new(&Params::from_dir(dir, DType::F32, device)?, &config, false)
    }

    /// Takes the model's tensors; `with_text` false leaves the text side out.
    pub fn new(p: &Params, config: &QlipConfig, with_text: bool) -> Result<Self> {
        config.check()?;
        let (v, d, t) = (&config.vision_config, &config.decoder_config, &config.text_config);
        let std = |width: usize| (width as f32).powf(-0.5);
        let quant_embed_post = if v.quantizer_embed_type == "mlp" {
            let width = v.width_after_quantizer();
            let place = p.at("vision_model.quant_embed_post");
            Some(Bottleneck::new(&place, v.quantizer_cfg.embed_dim, width, width, v.initializer_range.max(0.1))?)
        } else {
            None
        };
        let (text, text_projection) = if with_text {
            let proj = Linear::new(
                &p.at("text_projection"),
                t.hidden_size,
                config.projection_dim,
                config.text_projection_bias,
                std(t.hidden_size),
            )?;
            (Some(TextTower::new(&p.at("text_model"), t)?), Some(proj))
        } else {
            (None, None)
        };
        Ok(Self {
            config: config.clone(),
            vision: VisionTower::new(&p.at("vision_model"), v)?,
            text,
            bsq: Bsq::new(&v.quantizer_cfg),
            quant_embed_post,
            decoder: PixelDecoder::new(&p.at("vision_decoder"), d)?,
            visual_projection: Linear::new(
                &p.at("visual_projection"),
                v.hidden_size,
                config.projection_dim,
                config.vision_projection_bias,
                std(v.hidden_size),
            )?,
            text_projection,
            logit_scale: p.get((), "logit_scale", Init::Const(config.logit_scale_init_value))?,
        })
    }

    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.config.vision_config.grid()
    }

    /// Tower, features and latents.
    pub fn encode(&self, pixels: &Pixels) -> Result<VisionOutput> {
        let size = self.config.vision_config.image_size;
        if pixels.0.dims().get(1..) != Some(&[3, size, size][..]) {
            return Err(Error::invalid(format!(
                "pixels of shape {:?}; the model takes [batch, 3, {size}, {size}]",
                pixels.0.dims()
            )));
        }
        self.vision.forward(pixels)
    }

    /// Latents to integer codes.
    pub fn codes(&self, latents: &Latents) -> Result<Codes> {
        if self.bsq.bits > 63 {
            let why = format!("codes of {} bits are no integers here; up to 63 bits are", self.bsq.bits);
            return Err(Error::invalid(why));
        }
        Ok(Codes { bits: self.bsq.bits, grid: self.grid(), indices: self.bsq.indices(latents)? })
    }

    /// Corners [batch, patches, bits] to the decoder's input [batch, patches, width].
    pub fn expand(&self, quantized: &Tensor) -> Result<Tensor> {
        match &self.quant_embed_post {
            Some(mlp) => mlp.forward(quantized),
            None => Ok(quantized.clone()),
        }
    }

    /// Decoder's input to pixels and the decoder's hidden states.
    pub fn paint(&self, zhat: &Tensor) -> Result<(Pixels, Vec<Tensor>)> {
        self.decoder.forward(zhat)
    }

    /// Codes to pixels.
    pub fn decode(&self, codes: &Codes) -> Result<Pixels> {
        let n = codes.per_image();
        if codes.bits != self.bsq.bits || codes.grid != self.grid() {
            return Err(Error::invalid(format!(
                "codes of {} bits on a {} grid; the model has {} bits on {}",
                codes.bits,
                codes.grid,
                self.bsq.bits,
                self.grid()
            )));
        }
        let corners = self.bsq.corners(&codes.indices, self.logit_scale.device())?;
        let corners = corners.reshape((codes.images(), n, self.bsq.bits))?.to_dtype(self.logit_scale.dtype())?;
        Ok(self.paint(&self.expand(&corners)?)?.0)
    }

    /// Unit image embeddings [batch, projection_dim] of the class token's feature.
    pub fn embed_image(&self, pooled: &Tensor) -> Result<Tensor> {
        unit(&self.visual_projection.forward(pooled)?)
    }

    /// Unit text embeddings [batch, projection_dim] of token ids, `tokens` a text.
    pub fn embed_text(&self, ids: &[u32], tokens: usize) -> Result<Tensor> {
        let (Some(tower), Some(projection)) = (&self.text, &self.text_projection) else {
            return Err(Error::invalid("this checkpoint has no text tower"));
        };
        unit(&projection.forward(&tower.forward(ids, tokens)?.pooled)?)
    }
}
