//! The registry: which architectures there are, how config.json tells them, and what each can do.

use serde_json::Value;

/// What a model can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Can {
    /// Answer a conversation.
    pub talk: bool,
    /// Take pictures in a conversation.
    pub see: bool,
    /// Draw.
    pub draw: bool,
    /// Make codes of pictures and pictures of codes.
    pub tokenize: bool,
    /// Hold pictures against words.
    pub classify: bool,
}

macro_rules! registry {
    ($($(#[$doc:meta])* $name:ident: $types:expr, $mark:expr, $says:literal, [$($can:ident),*];)*) => {
        /// What a model is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Architecture { $($(#[$doc])* $name),* }

        /// All of them.
        pub const ALL: &[Architecture] = &[$(Architecture::$name),*];

        impl Architecture {
            /// The values of `model_type` that name it.
            pub fn model_types(self) -> &'static [&'static str] {
                match self { $(Self::$name => &$types),* }
            }
            /// Whether a config.json without a `model_type` that is known is one.
            fn is_marked(self, json: &Value) -> bool {
                let has = |key: &str| json.get(key).is_some();
                match self { $(Self::$name => { let mark: &[&str] = &$mark; !mark.is_empty() && mark.iter().all(|k| has(k)) }),* }
            }
            /// In words.
            pub fn says(self) -> &'static str {
                match self { $(Self::$name => $says),* }
            }
            /// What it can do.
            #[allow(clippy::needless_update, reason = "one that can do everything leaves nothing to default")]
            pub fn can(self) -> Can {
                match self { $(Self::$name => Can { $($can: true,)* ..Can::default() }),* }
            }
        }
    };
}

// a line an architecture: values of model_type; keys that tell it where model_type does not; words; abilities
registry! {
    /// This project's mixed-modality model.
    Unified: ["um3"], [],
        "unified model: Llama-style decoder over text and visual rows, QLIP image tokenizer", [talk, see, draw];
    /// LLaVA, also as its authors wrote it.
    Llava: ["llava", "llava_llama"], ["mm_vision_tower"], "LLaVA: vision tower, two-layer projector, Llama decoder", [talk, see];
    /// Janus and Janus-Pro of both layouts.
    Janus: ["janus", "multi_modality"], [],
        "Janus: SigLIP tower, Llama decoder, a head of codes and a VQ image tokenizer", [talk, see, draw];
    /// Chameleon and Anole.
    Chameleon: ["chameleon"], [], "Chameleon: Llama-style decoder over words and VQ codes", [talk, see, draw];
    /// Emu3.
    Emu3: ["emu3"], [], "Emu3: Llama-style decoder over words and VQ codes", [talk, see, draw];
    /// A plain Llama.
    Llama: ["llama"], [], "Llama decoder", [talk];
    /// LlamaGen.
    LlamaGen: ["c2i", "t2i"], ["n_layer"], "LlamaGen: Llama-style decoder of picture tokens", [draw];
    /// QLIP.
    Qlip: [], ["vision_config", "decoder_config"],
        "QLIP: vision tower, text tower, binary spherical quantizer, pixel decoder", [tokenize, classify];
    /// LlamaGen's image tokenizer.
    Vq: [], ["codebook_size"], "VQ image tokenizer of LlamaGen", [tokenize];
    /// CLIP's vision tower.
    ClipVision: ["clip_vision_model"], [], "CLIP vision tower", [];
    /// The classifier that measures drawings.
    Classifier: ["classifier"], [], "classifier of pictures: convolutions", [];
    /// T5, whose encoder conditions LlamaGen.
    T5: ["t5"], [], "T5 text encoder", [];
}

impl Architecture {
    /// Of a config.json, or why not.
    pub fn of(json: &Value) -> Result<Self, String> {
        let named = json["model_type"].as_str();
        // QLIP's configs say "clip", as published: keys decide where the name does not
        let by_name = ALL.iter().find(|a| named.is_some_and(|n| a.model_types().contains(&n)));
        if let Some(found) = by_name.or_else(|| ALL.iter().find(|a| a.is_marked(json))) {
            return Ok(*found);
        }
        let known: Vec<&str> = ALL.iter().filter_map(|a| a.model_types().first().copied()).collect();
        Err(match named {
            Some(n) => {
                format!("model_type {n} is not known here; {}, QLIP and VQ image tokenizers are", known.join(", "))
            }
            None => format!("names no model_type, and is no QLIP's or VQ tokenizer's; known are {}", known.join(", ")),
        })
    }

    /// Its first name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qlip => "qlip",
            Self::Vq => "vq",
            Self::LlamaGen => "llamagen",
            other => other.model_types().first().copied().unwrap_or("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_decide_where_no_name_does() {
        let of = |text: &str| Architecture::of(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"model_type": "llava_llama", "mm_vision_tower": "x"}"#), Ok(Architecture::Llava));
        assert_eq!(of(r#"{"model_type": "clip", "vision_config": {}, "decoder_config": {}}"#), Ok(Architecture::Qlip));
        assert_eq!(of(r#"{"codebook_size": 8}"#), Ok(Architecture::Vq));
        assert!(of(r#"{"model_type": "mamba"}"#).unwrap_err().contains("mamba"));
        assert!(of("{}").unwrap_err().contains("um3"));
    }
}
