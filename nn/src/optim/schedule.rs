//! Learning rate over the steps of a training.

use serde::{Deserialize, Serialize};

/// How the learning rate goes down after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Half a cosine down to the floor.
    #[default]
    Cosine,
    /// Not at all.
    Constant,
    /// A straight line down to the floor.
    Linear,
    /// Warm-up, stable, decay (Hu et al. 2024): not at all until the last fifth, then a straight line down to the floor.
    Wsd,
}

/// Linear warm-up from 0, then a shape down to a floor that stays.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// How it goes down.
    #[serde(default)]
    pub shape: Shape,
    /// Highest value.
    pub peak: f64,
    /// Last value.
    pub floor: f64,
    /// Steps of warm-up.
    pub warmup: usize,
    /// Step at which the floor is reached.
    pub total: usize,
}

/// Share of the steps after which `Wsd` goes down.
const STABLE: f64 = 0.8;

impl Schedule {
    /// Value at a step, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let done = (step - self.warmup) as f64 / self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = done.min(1.0);
        let left = match self.shape {
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Shape::Constant => 1.0,
            Shape::Linear => 1.0 - done,
            Shape::Wsd => ((1.0 - done) / (1.0 - STABLE)).min(1.0),
        };
        self.floor + (self.peak - self.floor) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_begin_at_the_peak_and_end_where_they_say() {
        let s = |shape| Schedule { shape, peak: 1.0, floor: 0.1, warmup: 10, total: 110 };
        for shape in [Shape::Cosine, Shape::Constant, Shape::Linear, Shape::Wsd] {
            assert_eq!((s(shape).at(5), s(shape).at(10)), (0.5, 1.0));
        }
        assert!((s(Shape::Cosine).at(60) - 0.55).abs() < 1e-12 && (s(Shape::Linear).at(60) - 0.55).abs() < 1e-12);
        assert_eq!((s(Shape::Wsd).at(89), s(Shape::Constant).at(500)), (1.0, 1.0));
        assert!((s(Shape::Wsd).at(100) - 0.55).abs() < 1e-12);
        for shape in [Shape::Cosine, Shape::Linear, Shape::Wsd] {
            assert!((s(shape).at(200) - 0.1).abs() < 1e-12);
        }
    }
}
