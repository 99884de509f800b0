//! Names of convolutional image tokenizers in other publications, as LlamaGen's, which this crate uses.

/// Which end of the decoder level 0 is in a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum DecoderLevels {
    /// The coarsest, where the decoder begins (Janus).
    FromCoarsest,
    /// The finest, as in the encoder (Chameleon and taming-transformers, Emu3); the number of levels in all.
    FromFinest(usize),
}

/// LlamaGen's name of a tensor of a tokenizer.
pub fn llamagen_name(name: &str, levels: DecoderLevels) -> String {
    // Emu3 as transformers writes it
    let name = name.replace(".down_block.down.", ".down.").replace(".up_block.up.", ".up.");
    let name = name.replace(".middle_block.", ".mid.").replace(".mid.attn_norm.", ".mid.attn_1.norm.");
    let parts: Vec<&str> = name.split('.').collect();
    let mut out: Vec<String> = Vec::with_capacity(parts.len());
    let mut i = 0;
    while i < parts.len() {
        let number = parts.get(i + 1).and_then(|n| n.parse::<usize>().ok());
        match (parts[i], number) {
            ("down", Some(level)) => out.extend(["conv_blocks".into(), level.to_string()]),
            ("up", Some(level)) => {
                let level = match levels {
                    DecoderLevels::FromCoarsest => level,
                    DecoderLevels::FromFinest(all) => all.saturating_sub(level + 1),
                };
                out.extend(["conv_blocks".into(), level.to_string()]);
            }
            ("block", Some(n)) => out.extend(["res".into(), n.to_string()]),
            ("attn_norms", Some(n)) => out.extend(["attn".into(), n.to_string(), "norm".into()]),
            (part, number) => {
                out.push(
                    match part {
                        "block_1" => "0",
                        "attn_1" => "1",
                        "block_2" => "2",
                        "q_proj" => "q",
                        "k_proj" => "k",
                        "v_proj" => "v",
                        "out_proj" => "proj_out",
                        other => other,
                    }
                    .into(),
                );
                if let Some(n) = number {
                    out.push(n.to_string());
                }
            }
        }
        i += 1 + usize::from(number.is_some());
    }
    out.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_count_from_the_end_that_the_publication_counts_from() {
        let name = "decoder.up.0.block.1.nin_shortcut.bias";
        assert_eq!(llamagen_name(name, DecoderLevels::FromCoarsest), "decoder.conv_blocks.0.res.1.nin_shortcut.bias");
        assert_eq!(llamagen_name(name, DecoderLevels::FromFinest(3)), "decoder.conv_blocks.2.res.1.nin_shortcut.bias");
        let emu = "encoder.down_block.down.2.attn_norms.0.weight";
        assert_eq!(llamagen_name(emu, DecoderLevels::FromFinest(3)), "encoder.conv_blocks.2.attn.0.norm.weight");
        let mid = "decoder.middle_block.attn_norm.conv_y.bias";
        assert_eq!(llamagen_name(mid, DecoderLevels::FromFinest(3)), "decoder.mid.1.norm.conv_y.bias");
    }
}
