//! The renderer: integer arithmetic and 4 x 4 samples a pixel, so that bytes are the same on every machine.

use super::world::{CANVAS, Object, Scene, Shape};
use qlip::Image;

/// Points of the star in thousandths of the radius: outer at 1, inner at 0.4, first point up.
const STAR: [(i64, i64); 10] = [
    (0, -1000),
    (235, -324),
    (951, -309),
    (380, 124),
    (588, 809),
    (0, 400),
    (-588, 809),
    (-380, 124),
    (-951, -309),
    (-235, -324),
];

/// Whether the point (dx, dy) from the centre is inside a shape of radius r.
fn inside(shape: Shape, dx: i64, dy: i64, r: i64) -> bool {
    let (ax, ay) = (dx.abs(), dy.abs());
    match shape {
        Shape::Circle => dx * dx + dy * dy <= r * r,
        Shape::Square => ax.max(ay) * 8 <= r * 7,
        // apex at -r, base at 3/4 r of half width r
        Shape::Triangle => dy * 4 <= r * 3 && ax * 7 <= (dy + r) * 4,
        Shape::Diamond => ax + ay <= r,
        Shape::Cross => ax.max(ay) <= r && ax.min(ay) * 100 <= r * 34,
        Shape::Star => {
            let mut odd = false;
            for i in 0..10 {
                let (x0, y0) = (STAR[i].0 * r, STAR[i].1 * r);
                let (x1, y1) = (STAR[(i + 1) % 10].0 * r, STAR[(i + 1) % 10].1 * r);
                let (x, y) = (dx * 1000, dy * 1000);
                if (y0 > y) != (y1 > y) {
                    // the edge crosses this height left or right of the point
                    let side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0);
                    if (side > 0) == (y1 > y0) {
                        odd = !odd;
                    }
                }
            }
            odd
        }
    }
}

/// Draws a scene on a square of `side` pixels (64, 128 or 256).
pub fn render(scene: &Scene, side: usize) -> Image {
    let mut rgb = vec![scene.background; side * side * 3];
    let unit = CANVAS / side as i64;
    for o in &scene.objects {
        draw(o, &mut rgb, side, unit);
    }
    Image::from_rgb(side, side, rgb)
}

fn draw(o: &Object, rgb: &mut [u8], side: usize, unit: i64) {
    let r = o.size.radius();
    let range = |c: i64| {
        let lo = ((c - r) / unit - 1).clamp(0, side as i64);
        let hi = ((c + r) / unit + 2).clamp(0, side as i64);
        lo..hi
    };
    let colour = o.colour.rgb();
    for y in range(o.centre.1) {
        for x in range(o.centre.0) {
            let mut hits = 0u32;
            for sy in 0..4 {
                for sx in 0..4 {
                    let px = x * unit + unit * (2 * sx + 1) / 8;
                    let py = y * unit + unit * (2 * sy + 1) / 8;
                    hits += u32::from(inside(o.shape, px - o.centre.0, py - o.centre.1, r));
                }
            }
            let at = (y as usize * side + x as usize) * 3;
            for c in 0..3 {
                let under = u32::from(rgb[at + c]);
                rgb[at + c] = ((under * (16 - hits) + u32::from(colour[c]) * hits + 8) / 16) as u8;
            }
        }
    }
}
