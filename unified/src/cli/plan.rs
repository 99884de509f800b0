//! `unified plan CONFIG`: what a training would take on other machines.

use super::output::say;
use anyhow::{Result, bail};
use clap::Args;
use std::path::PathBuf;
use unified::train::Training;
use unified::train::plan::{Machines, plan};

/// Say what a training would take on given devices: parameters, memory, traffic, seconds an update, days. From formulas (docs/scale.md);
/// nothing is trained.
#[derive(Args)]
pub struct PlanArgs {
    /// A training's config.
    config: PathBuf,
    /// Override a key of the config.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Devices.
    #[arg(long, default_value_t = 1)]
    devices: usize,
    /// Operations a second that a device sustains in products; an H100 in bfloat16 about 4e14.
    #[arg(long, value_name = "F", default_value_t = 4e14)]
    flops: f64,
    /// Bytes a second that a device reads from its memory.
    #[arg(long, value_name = "B", default_value_t = 3e12)]
    bandwidth: f64,
    /// Bytes a second between devices.
    #[arg(long, value_name = "L", default_value_t = 5e10)]
    link: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl PlanArgs {
    pub fn run(&self) -> Result<()> {
        for (name, v) in [("flops", self.flops), ("bandwidth", self.bandwidth), ("link", self.link)] {
            if !(v.is_finite() && v > 0.0) {
                bail!("--{name} {v}: write more than 0");
            }
        }
        if self.devices == 0 {
            bail!("--devices 0: write 1 or more");
        }
        let training = Training::from_file(&self.config, &self.set)?;
        let on = Machines { devices: self.devices, flops: self.flops, bandwidth: self.bandwidth, link: self.link };
        let p = plan(&training, &on)?;
        if self.json {
            let mut json = serde_json::to_value(&p)?;
            json["version"] = 1.into();
            say!("{}", serde_json::to_string_pretty(&json)?);
            return Ok(());
        }
        let gib = |bytes: f64| bytes / f64::from(1 << 30);
        say!("parameters      {:.1} million trained, {:.1} held", p.trained_parameters / 1e6, p.held_parameters / 1e6);
        say!("an update       {:.3e} operations over {} devices", p.flops_per_update, self.devices);
        say!(
            "a device        {:.2} GiB: {:.2} of weights, gradients and state, {:.2} of a part's graph",
            gib(p.memory_bytes),
            gib(p.state_bytes),
            gib(p.activation_bytes)
        );
        say!("traffic         {:.2} GiB a device and update", gib(p.traffic_bytes));
        say!(
            "time            {:.3} s an update: products {:.3}, memory {:.3}, traffic {:.3}; {:.0}% of it products",
            p.update_seconds,
            p.compute_seconds,
            p.memory_seconds,
            p.traffic_seconds,
            100.0 * p.efficiency
        );
        say!("in all          {:.2} days", p.days);
        Ok(())
    }
}
