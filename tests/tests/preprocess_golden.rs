//! Pictures to pixels, against Pillow and CLIP's processor.

use candle_core::Device;
use qlip::image::{Image, Preprocess};
use tests::{fixture, golden, integers, values};

fn same_levels(what: &str, got: &Image, want: &candle_core::Tensor) {
    assert_eq!([got.height(), got.width(), 3], want.dims(), "{what}");
    let want = integers(want);
    let differ = got.rgb().iter().zip(&want).filter(|(a, b)| i64::from(**a) != **b).count();
    let worst = got.rgb().iter().zip(&want).map(|(a, b)| (i64::from(*a) - b).abs()).max().unwrap();
    assert!(
        worst <= 1 && differ * 1000 <= want.len(),
        "{what}: {differ} of {} levels differ, worst {worst}",
        want.len()
    );
}

#[test]
fn pixels_equal_pillows() {
    for n in 0..6 {
        let io = golden(&format!("preprocess/{n}.safetensors"));
        let img = Image::open(&fixture(&format!("preprocess/{n}.png"))).unwrap();
        if let Some(rgb) = io.get("rgb") {
            same_levels("rgb", &img, rgb);
        }
        for side in [48, 80] {
            let p = Preprocess::clip(side);
            let resized = &io[&format!("resized_{side}")];
            let whole = qlip::resample::resize(&img, resized.dims()[1], resized.dims()[0]);
            same_levels(&format!("{n} resized_{side}"), &whole, resized);
            same_levels(&format!("{n} cropped_{side}"), &p.crop(&img), &io[&format!("cropped_{side}")]);
            same_levels(&format!("{n} pad {side}"), &p.pad(&img).unwrap(), &io[&format!("llava_pad_resized_{side}")]);
        }
        let p = Preprocess::clip(48);
        for (what, image) in [("clip_48", p.crop(&img)), ("llava_pad_48", p.pad(&img).unwrap())] {
            let got = values(&p.normalise(&[image], &Device::Cpu).unwrap().0);
            let worst = got.iter().zip(values(&io[what])).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 0.02, "{n} {what}: {worst}");
        }
    }
}
