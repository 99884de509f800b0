//! Tensor names of the three LLaVA layouts.

/// Beginnings of names in newer exports and in the first release, and in llava-hf, whose names this crate uses. The
/// first that fits counts.
const LAYOUTS: [(&str, &str); 9] = [
    ("vision_tower.", "vision_tower."),
    ("language_model.", "language_model."),
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.language_model.", "language_model.model."),
    ("model.", "language_model.model."),
];

/// The llava-hf name of a tensor of any layout.
pub fn published_name(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("lm_head.") {
        return format!("language_model.lm_head.{rest}");
    }
    let name = LAYOUTS
        .iter()
        .find_map(|(from, to)| name.strip_prefix(from).map(|rest| format!("{to}{rest}")))
        .unwrap_or_else(|| name.to_owned());
    // transformers 5 writes the tower without its inner name
    match name.strip_prefix("vision_tower.") {
        Some(rest) if !rest.starts_with("vision_model.") => format!("vision_tower.vision_model.{rest}"),
        _ => name,
    }
}
