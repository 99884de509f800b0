//! config.json of a unified model: the language model, the merged vocabulary, the marks, the image tokenizer's folder.

use crate::template::Marks;
use lm::draw::{AfterPicture, DrawSettings};
use lm::{LlamaConfig, MergedVocab, SampleSettings};
use serde::{Deserialize, Serialize};

/// Root of config.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnifiedConfig {
    /// "um3".
    pub model_type: String,
    /// The language model.
    pub text_config: LlamaConfig,
    /// Which rows are text, visual, marks.
    pub vocabulary: MergedVocab,
    /// The chat's marks.
    pub marks: Marks,
    /// Folder of the image tokenizer, inside the model's.
    pub image_tokenizer: String,
    /// How the model likes to be sampled.
    pub generation: Generation,
    /// A question after a drawing that the model learned to answer by yes or no; lets it choose among drawings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_check: Option<String>,
}

/// Sampling settings for each modality.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Generation {
    /// Text tokens.
    pub text: SampleSettings,
    /// Visual tokens.
    pub image: SampleSettings,
    /// Guidance of pictures: 1 is none; above, logits = uncond + scale (cond - uncond).
    pub guidance_scale: f32,
    /// What the scale becomes where the model finds every choice as likely as another; from `guidance_scale`, where it is certain, it goes there with
    /// the square of the entropy's mean over about three cells' choices. For models whose pictures are nearly certain in one kind (scenes) and open
    /// in another (photographs). A scale that is asked for (`--guidance`) holds throughout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_uncertain: Option<f32>,
    /// Likewise of the pictures' temperature; a temperature of 0 stays 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_uncertain: Option<f32>,
    /// Guidance in a conversation that shows a picture already; as without one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_picture: Option<AfterPicture>,
    /// Whether guidance's other half, the request without words, keeps the conversation's last picture (InstructPix2Pix, Brooks et al. 2023,
    /// section 3.2.1, with a picture scale of 1): for models that saw such requests in training. Otherwise it is empty, and pulls away from a picture that
    /// is to be changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub guidance_keeps_picture: bool,
    /// Drawings for each picture, of which the one is kept that the model itself finds right most surely.
    pub best_of: usize,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            text: SampleSettings::greedy(),
            image: SampleSettings { temperature: 1.0, top_p: 0.95, ..SampleSettings::default() },
            guidance_scale: 2.0,
            guidance_uncertain: None,
            temperature_uncertain: None,
            after_picture: None,
            guidance_keeps_picture: false,
            best_of: 1,
        }
    }
}

impl Generation {
    /// How pictures are drawn.
    pub fn drawing(&self) -> DrawSettings {
        DrawSettings {
            guidance_uncertain: self.guidance_uncertain,
            temperature_uncertain: self.temperature_uncertain,
            after_picture: self.after_picture,
            ..DrawSettings::constant(self.image, self.guidance_scale)
        }
    }

    /// With pictures drawn so; a unified model's guidance has no interval and no schedule over the tokens.
    pub fn drawn(self, s: &DrawSettings) -> Self {
        Self {
            image: s.sample,
            guidance_scale: s.guidance_scale,
            guidance_uncertain: s.guidance_uncertain,
            temperature_uncertain: s.temperature_uncertain,
            after_picture: s.after_picture,
            ..self
        }
    }
}
