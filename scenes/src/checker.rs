//! The checker: pixels back to objects, and objects against a prompt. No network; every threshold is written here.
//!
//! Foreground is what differs from the border's colour, objects are connected and of one palette colour, shapes are the
//! nearest of templates that went through the same steps themselves.

use super::language::Prompt;
use super::render::render;
use super::verdict::{Seen, Verdict, judge};
use super::world::{CANVAS, Colour, Object, Scene, Shape, Size};
use qlip::Image;

/// Side at which pictures are looked at.
const SIDE: usize = 128;
/// CIE76 distance from the background from which a pixel is foreground.
const FOREGROUND: f32 = 26.0;
/// Smallest object, as a share of the canvas.
const MIN_AREA: f64 = 0.004;
/// Share of an object's core that must have its colour.
const COLOUR_SHARE: f64 = 0.8;
/// Smallest overlap with a template that names a shape.
const SHAPE_IOU: f64 = 0.72;
/// Box side, as a share of the canvas, from which an object is large.
const LARGE: f64 = 0.2;
/// Side of the shape masks.
const MASK: usize = 32;

type Mask = Vec<bool>;

/// The checker with its calibrated templates.
pub struct Checker {
    templates: Vec<(Shape, Mask)>,
}

impl Checker {
    /// Calibrates on clean renders of `side` pixels, the side of the pictures to be checked.
    pub fn new(side: usize) -> Self {
        let mut templates = Vec::new();
        for shape in Shape::ALL {
            for size in Size::ALL {
                for shift in [0, CANVAS / 128] {
                    let centre = (CANVAS / 2 + shift, CANVAS / 2 + shift);
                    let object = Object { colour: Colour::Black, shape, size, centre };
                    let img = render(&Scene { objects: vec![object], background: 236 }, side);
                    let found = blobs(&img);
                    templates.extend(found.into_iter().map(|b| (shape, b.mask())));
                }
            }
        }
        Self { templates }
    }

    /// The objects of a picture.
    pub fn see(&self, img: &Image) -> Vec<Seen> {
        blobs(img).into_iter().map(|b| self.name(&b)).collect()
    }

    fn name(&self, b: &Blob) -> Seen {
        let (x0, y0, x1, y1) = b.bounds();
        let (w, h) = ((x1 - x0) as f64, (y1 - y0) as f64);
        let mask = b.mask();
        let best = self.templates.iter().map(|(s, t)| (*s, overlap(t, &mask))).max_by(|a, b| a.1.total_cmp(&b.1));
        let square = (0.7..=1.43).contains(&(w / h));
        let side = SIDE as f64;
        Seen {
            colour: b.colour,
            shape: best.filter(|(_, iou)| *iou >= SHAPE_IOU && square && b.pure).map(|x| x.0),
            size: if w.max(h) / side > LARGE { Size::Large } else { Size::Small },
            centre: ((x0 + x1) as f64 / 2.0 / side, (y0 + y1) as f64 / 2.0 / side),
        }
    }

    /// A picture against a prompt.
    pub fn check(&self, img: &Image, prompt: &Prompt) -> Verdict {
        judge(&self.see(img), prompt)
    }

    /// Whether a picture shows exactly a scene's objects, each near its place.
    pub fn shows(&self, img: &Image, scene: &Scene) -> bool {
        let seen = self.see(img);
        seen.len() == scene.objects.len()
            && scene.objects.iter().all(|o| {
                let at = |v: i64| v as f64 / CANVAS as f64;
                seen.iter().any(|s| {
                    s.colour == o.colour
                        && s.shape == Some(o.shape)
                        && s.size == o.size
                        && (s.centre.0 - at(o.centre.0)).abs() < 0.08
                        && (s.centre.1 - at(o.centre.1)).abs() < 0.08
                })
            })
    }
}

/// Connected foreground of mainly one colour.
struct Blob {
    pixels: Vec<(usize, usize)>,
    colour: Colour,
    pure: bool,
}

impl Blob {
    fn bounds(&self) -> (usize, usize, usize, usize) {
        self.pixels
            .iter()
            .fold((SIDE, SIDE, 0, 0), |(x0, y0, x1, y1), &(x, y)| (x0.min(x), y0.min(y), x1.max(x + 1), y1.max(y + 1)))
    }

    /// The tight box, resampled to a square mask.
    fn mask(&self) -> Mask {
        let (x0, y0, x1, y1) = self.bounds();
        let (w, h) = (x1 - x0, y1 - y0);
        let mut inside = vec![false; w * h];
        for &(x, y) in &self.pixels {
            inside[(y - y0) * w + x - x0] = true;
        }
        let cell = |i: usize, n: usize| ((i as f64 + 0.5) * n as f64 / MASK as f64) as usize;
        (0..MASK * MASK).map(|i| inside[cell(i / MASK, h) * w + cell(i % MASK, w)]).collect()
    }
}

fn overlap(a: &Mask, b: &Mask) -> f64 {
    let (mut both, mut any) = (0u32, 0u32);
    for (&x, &y) in a.iter().zip(b) {
        both += u32::from(x && y);
        any += u32::from(x || y);
    }
    f64::from(both) / f64::from(any.max(1))
}

fn blobs(img: &Image) -> Vec<Blob> {
    let rgb = median(&resized(img));
    let lab: Vec<[f32; 3]> = rgb.iter().map(|&p| to_lab(p)).collect();
    let background = border(&lab);
    let palette = Colour::ALL.map(|c| (c, to_lab(c.rgb().map(f32::from))));
    let near = |p: &[f32; 3]| {
        let nearest = palette.iter().min_by(|a, b| distance(p, &a.1).total_cmp(&distance(p, &b.1)));
        nearest.map_or(Colour::Black, |c| c.0)
    };
    let class: Vec<Option<Colour>> =
        lab.iter().map(|p| (distance(p, &background) > FOREGROUND).then(|| near(p))).collect();
    let min = (MIN_AREA * (SIDE * SIDE) as f64) as usize;
    let mut out = Vec::new();
    for pixels in components(&class.iter().map(Option::is_some).collect::<Vec<_>>()) {
        if pixels.len() < min {
            continue;
        }
        let (colour, share) = dominant(&pixels, &class);
        if share >= COLOUR_SHARE {
            out.push(Blob { pixels, colour, pure: true });
            continue;
        }
        // touching objects of different colours: split by colour
        let mut parts = Vec::new();
        for c in Colour::ALL {
            let mut only = vec![false; SIDE * SIDE];
            for &(x, y) in &pixels {
                only[y * SIDE + x] = class[y * SIDE + x] == Some(c);
            }
            let large = components(&only).into_iter().filter(|p| p.len() >= min);
            parts.extend(large.map(|pixels| Blob { pixels, colour: c, pure: true }));
        }
        if parts.is_empty() {
            parts.push(Blob { pixels, colour, pure: false });
        }
        out.extend(parts);
    }
    out
}

/// The commonest colour of a blob's core (pixels whose four neighbours belong to it), and its share.
fn dominant(pixels: &[(usize, usize)], class: &[Option<Colour>]) -> (Colour, f64) {
    let mut inside = vec![false; SIDE * SIDE];
    for &(x, y) in pixels {
        inside[y * SIDE + x] = true;
    }
    let core = |&&(x, y): &&(usize, usize)| {
        x > 0
            && y > 0
            && x + 1 < SIDE
            && y + 1 < SIDE
            && inside[y * SIDE + x - 1]
            && inside[y * SIDE + x + 1]
            && inside[(y - 1) * SIDE + x]
            && inside[(y + 1) * SIDE + x]
    };
    let mut counts = [0usize; 8];
    for &(x, y) in pixels.iter().filter(core) {
        if let Some(c) = class[y * SIDE + x] {
            counts[c as usize] += 1;
        }
    }
    let total: usize = counts.iter().sum();
    let best = (0..8).max_by_key(|&i| counts[i]).unwrap_or(0);
    (Colour::ALL[best], counts[best] as f64 / total.max(1) as f64)
}

/// 8-connected components.
fn components(on: &[bool]) -> Vec<Vec<(usize, usize)>> {
    let mut seen = vec![false; on.len()];
    let mut out = Vec::new();
    for start in 0..on.len() {
        if !on[start] || seen[start] {
            continue;
        }
        seen[start] = true;
        let (mut stack, mut pixels) = (vec![start], Vec::new());
        while let Some(i) = stack.pop() {
            let (x, y) = (i % SIDE, i / SIDE);
            pixels.push((x, y));
            for ny in y.saturating_sub(1)..(y + 2).min(SIDE) {
                for nx in x.saturating_sub(1)..(x + 2).min(SIDE) {
                    let j = ny * SIDE + nx;
                    if on[j] && !seen[j] {
                        seen[j] = true;
                        stack.push(j);
                    }
                }
            }
        }
        out.push(pixels);
    }
    out
}

/// To SIDE x SIDE: bilinear (a box where the picture is larger).
fn resized(img: &Image) -> Vec<[f32; 3]> {
    let sample = |n: usize, i: usize| -> (usize, usize, f32) {
        let at = ((i as f32 + 0.5) * n as f32 / SIDE as f32 - 0.5).clamp(0.0, (n - 1) as f32);
        (at as usize, (at as usize + 1).min(n - 1), at.fract())
    };
    let (w, h) = (img.width(), img.height());
    let mut out = Vec::with_capacity(SIDE * SIDE);
    for y in 0..SIDE {
        for x in 0..SIDE {
            if w > SIDE && h > SIDE {
                let (xs, ys) = (x * w / SIDE..(x + 1) * w / SIDE, y * h / SIDE..(y + 1) * h / SIDE);
                let n = (xs.len() * ys.len()) as f32;
                let mut sum = [0f32; 3];
                for yy in ys {
                    for xx in xs.clone() {
                        for (s, v) in sum.iter_mut().zip(img.pixel(xx, yy)) {
                            *s += f32::from(v);
                        }
                    }
                }
                out.push(sum.map(|s| s / n));
                continue;
            }
            let ((xa, xb, fx), (ya, yb, fy)) = (sample(w, x), sample(h, y));
            let p = |x, y| img.pixel(x, y).map(f32::from);
            let (a, b, c, d) = (p(xa, ya), p(xb, ya), p(xa, yb), p(xb, yb));
            out.push(std::array::from_fn(|i| {
                (a[i] * (1.0 - fx) + b[i] * fx) * (1.0 - fy) + (c[i] * (1.0 - fx) + d[i] * fx) * fy
            }));
        }
    }
    out
}

/// 3 x 3 median of each channel.
fn median(p: &[[f32; 3]]) -> Vec<[f32; 3]> {
    let at = |x: usize, y: usize| p[y * SIDE + x];
    let mut out = Vec::with_capacity(p.len());
    for y in 0..SIDE {
        for x in 0..SIDE {
            out.push(std::array::from_fn(|c| {
                let mut v = [0f32; 9];
                for (i, v) in v.iter_mut().enumerate() {
                    let nx = (x + i % 3).saturating_sub(1).min(SIDE - 1);
                    let ny = (y + i / 3).saturating_sub(1).min(SIDE - 1);
                    *v = at(nx, ny)[c];
                }
                v.sort_unstable_by(f32::total_cmp);
                v[4]
            }));
        }
    }
    out
}

/// Median of a ring of three pixels along the border.
fn border(lab: &[[f32; 3]]) -> [f32; 3] {
    let ring: Vec<&[f32; 3]> = lab
        .iter()
        .enumerate()
        .filter(|(i, _)| {
            let (x, y) = (i % SIDE, i / SIDE);
            x.min(y).min(SIDE - 1 - x).min(SIDE - 1 - y) < 3
        })
        .map(|(_, p)| p)
        .collect();
    std::array::from_fn(|c| {
        let mut v: Vec<f32> = ring.iter().map(|p| p[c]).collect();
        v.sort_unstable_by(f32::total_cmp);
        v[v.len() / 2]
    })
}

fn distance(a: &[f32; 3], b: &[f32; 3]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt()
}

/// sRGB levels to CIE Lab (D65).
fn to_lab(rgb: [f32; 3]) -> [f32; 3] {
    let linear = rgb.map(|v| {
        let v = v / 255.0;
        if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
    });
    let [r, g, b] = linear;
    let xyz = [
        (0.412_456_4 * r + 0.357_576_1 * g + 0.180_437_5 * b) / 0.950_47,
        0.212_672_9 * r + 0.715_152_2 * g + 0.072_175 * b,
        (0.019_333_9 * r + 0.119_192 * g + 0.950_304_1 * b) / 1.088_83,
    ];
    let [x, y, z] = xyz.map(|t| if t > 0.008_856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 });
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

#[cfg(test)]
mod tests {
    use super::super::{Category, SceneRng, Split, prompt};
    use super::*;

    #[test]
    fn reads_every_clean_render() {
        for side in [64, 128, 256] {
            let checker = Checker::new(side);
            let n = if side == 64 { 1000 } else { 200 };
            for i in 0..n {
                let mut rng = SceneRng::new(Split::Test, 9, i);
                let scene = Scene::random(&mut rng, Split::Test, 1, 6);
                let img = render(&scene, side);
                assert!(
                    checker.shows(&img, &scene),
                    "side {side}, item {i}: {scene:?} read as {:?}",
                    checker.see(&img)
                );
            }
        }
    }

    #[test]
    fn accepts_the_prompt_and_no_near_miss() {
        let checker = Checker::new(64);
        for i in 0..3000u64 {
            let mut rng = SceneRng::new(Split::Test, 11, i);
            let category = Category::ALL[i as usize % 6];
            let (p, scene) = prompt(&mut rng, Split::Test, category);
            assert!(checker.check(&render(&scene, 64), &p).strict, "{p:?} {scene:?}");
            // change one atom of what is asked
            let mut miss = p.clone();
            let n = rng.below(miss.nouns.len());
            let noun = &mut miss.nouns[n];
            match rng.below(4) {
                0 if noun.colour.is_some() => {
                    noun.colour = noun.colour.map(|c| Colour::ALL[(c as usize + 1 + rng.below(7)) % 8]);
                }
                1 => noun.count += 1,
                2 if miss.relation.is_some() => {
                    miss.relation =
                        miss.relation.map(|r| super::super::Relation::ALL[(r as usize + 1 + rng.below(3)) % 4]);
                }
                _ => noun.shape = noun.shape.map(|s| Shape::ALL[(s as usize + 1 + rng.below(5)) % 6]),
            }
            assert!(!checker.check(&render(&scene, 64), &miss).strict, "{miss:?} accepted for {scene:?}");
        }
    }

    #[test]
    fn noise_and_flat_pictures_hold_no_named_objects() {
        let checker = Checker::new(64);
        assert!(checker.see(&Image::from_rgb(64, 64, vec![200; 64 * 64 * 3])).is_empty());
        let mut seed = 1;
        let noise = (0..64 * 64 * 3)
            .map(|_| {
                seed = nn::rng::mix(seed + 1);
                seed as u8
            })
            .collect();
        assert!(checker.see(&Image::from_rgb(64, 64, noise)).iter().all(|s| s.shape.is_none()));
    }
}
