//! `unified forward` against the golden outputs.

use super::{fixture, ok};
use candle_core::Tensor;

#[test]
fn forward_gives_the_golden_outputs() {
    let dir = tempfile::tempdir().unwrap();
    for (case, names) in [
        (
            "qlip/eva",
            &[
                "hidden_2",
                "h",
                "indices",
                "group_indices",
                "zhat",
                "recon",
                "text_embeds",
                "logits_per_text",
                "clip_loss",
            ][..],
        ),
        (
            "llama/gqa",
            &["logits", "loss", "padded_logits", "greedy_tokens", "padded_greedy_tokens", "inverse_frequencies"],
        ),
        ("clipvision", &["hidden_0", "hidden_1", "hidden_2", "hidden_3", "last_hidden_state", "pooler_output"]),
        (
            "llamagen/c2i",
            &[
                "rope_table",
                "condition_embedding",
                "condition_drop_embedding",
                "eval_logits",
                "train_logits",
                "train_loss",
                "greedy_scale1_interval-1",
                "greedy_scale4_interval-1",
                "greedy_scale4_interval2",
            ],
        ),
        (
            "llamagen/t2i",
            &[
                "rope_table",
                "condition_embedding",
                "condition_drop_embedding",
                "eval_logits",
                "train_logits",
                "train_loss",
                "padded_eval_logits",
                "padded_train_logits",
                "padded_train_loss",
                "greedy_scale4_interval2",
                "greedy_padded_scale1_interval-1",
                "greedy_padded_scale4_interval-1",
                "greedy_padded_scale4_interval2",
            ],
        ),
        (
            "vq",
            &[
                "encoder_out",
                "pre_quant",
                "indices",
                "quantized",
                "codebook_entries",
                "decoded",
                "decoded_from_code",
                "vq_loss",
                "commit_loss",
            ],
        ),
        ("llava", &["image_features", "logits", "loss", "two_images_logits", "greedy_tokens"]),
    ] {
        let folder = fixture(case);
        let io = folder.join("io.safetensors");
        ok(dir.path(), &["forward", folder.to_str().unwrap(), io.to_str().unwrap(), "-o", "out.safetensors"]);
        let got = nn::checkpoint::load(&dir.path().join("out.safetensors")).unwrap();
        let want = nn::checkpoint::load(&io).unwrap();
        for name in names {
            let v = |t: &Tensor| {
                t.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            let (a, b) = (v(&got[*name]), v(&want[*name]));
            let scale = b.iter().fold(1f64, |m, x| m.max(x.abs()));
            let worst = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
            let tolerance = if case == "vq" { 5e-5 } else { 1e-5 };
            assert!(a.len() == b.len() && worst <= tolerance * scale, "{case} {name}: off by {worst}");
        }
    }
}
