//! Picture metrics against scikit-image and pytorch-msssim.

use eval::image::{mse, psnr, ssim};
use qlip::Image;
use tests::{fixture, golden, integers};

#[test]
fn psnr_and_ssim() {
    let io = golden("metrics/images.safetensors");
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(fixture("metrics/images.json")).unwrap()).unwrap();
    let image = |key: String| {
        let t = &io[&key];
        let bytes = integers(t).into_iter().map(|v| v as u8).collect();
        Image::from_rgb(t.dims()[1], t.dims()[0], bytes)
    };
    let mut checked = 0;
    for row in &rows {
        let Some(i) = row["i"].as_u64() else { continue };
        let (Some(_), Some(_)) = (io.get(&format!("a{i}")), io.get(&format!("b{i}"))) else { continue };
        let (a, b) = (image(format!("a{i}")), image(format!("b{i}")));
        for (name, got) in [("mse", mse(&a, &b)), ("psnr", psnr(&a, &b)), ("ssim_gauss11", ssim(&a, &b).unwrap())] {
            let Some(want) = row[name].as_f64() else { continue };
            assert!((got - want).abs() <= 1e-9 * want.abs(), "{i} {name}: {got} for {want}");
            checked += 1;
        }
        assert!(psnr(&a, &a).is_infinite() && (ssim(&a, &a).unwrap() - 1.0).abs() < 1e-12);
    }
    assert!(checked >= 12, "{checked} values checked");
}
