//! The other player of the adversarial loss, trained in the same step on the same pictures.

use super::{CLIPPED_APART, carried};
use crate::discriminator::{Discriminator, DiscriminatorConfig};
use crate::loss::{Game, r1};
use candle_core::{Tensor, Var};
use nn::{Params, Result};
use serde::{Deserialize, Serialize};

/// Config of the adversarial term.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AdversaryConfig {
    /// The discriminator.
    pub net: DiscriminatorConfig,
    /// How the two sides are scored.
    #[serde(default)]
    pub game: Game,
    /// Weight of the gradient penalty R1; 0 is none.
    #[serde(default)]
    pub r1_gamma: f64,
    /// Steps from one penalty to the next; it counts as many times ("lazy", Karras et al. 2020).
    #[serde(default = "sixteen")]
    pub r1_every: usize,
    /// Step from which the generator plays; the discriminator learns from the beginning.
    #[serde(default)]
    pub start: usize,
}

fn sixteen() -> usize {
    16
}

/// A discriminator in training.
pub struct Adversary {
    net: Discriminator,
    /// Its tensors.
    weights: Vec<Var>,
    config: AdversaryConfig,
}

/// Losses of both sides.
pub struct Turn {
    /// The generator's; absent before it plays.
    pub generator: Option<Tensor>,
    /// The discriminator's, which no gradient of the generator comes from.
    pub discriminator: Tensor,
    /// The penalty's value, in steps that have one.
    pub r1: Option<f64>,
}

impl Adversary {
    /// Takes the discriminator's tensors below this place.
    pub fn new(p: &Params, config: &AdversaryConfig, side: usize) -> Result<Self> {
        let net = Discriminator::new(p, &config.net, side)?;
        let own = |name: &str| CLIPPED_APART.iter().any(|prefix| name.starts_with(prefix));
        let weights = p.vars().into_iter().filter(|(name, _)| own(name)).map(|(_, var)| var).collect();
        Ok(Self { net, weights, config: config.clone() })
    }

    /// Both sides' losses at a step.
    pub fn turn(&self, step: usize, fake: &Tensor, real: &Tensor) -> Result<Turn> {
        let c = &self.config;
        let generator = match step >= c.start {
            true => Some(c.game.generator(&self.net.held().forward(fake)?)?),
            false => None,
        };
        let real = real.detach();
        let mut discriminator = c.game.discriminator(&self.net.forward(&real)?, &self.net.forward(&fake.detach())?)?;
        let mut penalty = None;
        if c.r1_gamma > 0.0 && step.is_multiple_of(c.r1_every.max(1)) {
            // a difference of two gradients: bfloat16 has too few digits for the step between them
            let (value, grads) = nn::Exec::exact(|| -> Result<_> {
                let (value, slope) = r1(&self.net, &real, c.r1_gamma)?;
                Ok((value, slope.backward()?))
            })?;
            for w in &self.weights {
                let Some(g) = grads.get(w.as_tensor()) else { continue };
                let often = (g.detach() * c.r1_every.max(1) as f64)?;
                discriminator = (discriminator + carried(w.as_tensor(), &often)?)?;
            }
            penalty = Some(value);
        }
        Ok(Turn { generator, discriminator, r1: penalty })
    }
}
