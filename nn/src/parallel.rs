//! The processes that train one model together, each on its share of every batch.
//!
//! Everything here is collective: all processes call the same functions in the same order. Alone, they cost nothing.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::ops::Range;

/// Who trains.
pub enum World {
    /// This process alone.
    Alone,
    /// Processes that `mpirun` started.
    #[cfg(feature = "mpi")]
    Mpi(mpi_world::Mpi),
}

/// Values that are reduced in one message.
#[cfg(feature = "mpi")]
const BUCKET: usize = 1 << 20;

/// Variables in which launchers say which of how many processes this is: mpirun of Open MPI and of MPICH, srun, torchrun.
const LAUNCHERS: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("RANK", "WORLD_SIZE"),
];

/// Which of how many processes this is, as its launcher says: (rank, size).
pub fn launched() -> Option<(usize, usize)> {
    let number = |name: &str| std::env::var(name).ok()?.trim().parse::<usize>().ok();
    let found = LAUNCHERS.iter().find_map(|(rank, size)| Some((number(rank)?, number(size)?)));
    found.filter(|(rank, size)| rank < size)
}

impl World {
    /// The processes that this one was started with. Several without a way to talk to each other are an error: each would train by itself
    /// in one folder.
    pub fn join() -> Result<Self> {
        #[cfg(feature = "mpi")]
        if std::env::var_os("OMPI_COMM_WORLD_SIZE").is_some() || std::env::var_os("PMI_SIZE").is_some() {
            return Ok(Self::Mpi(mpi_world::Mpi::join()?));
        }
        match launched() {
            Some((_, size)) if size > 1 => Err(Error::invalid(format!(
                "this is one of {size} processes; training together needs a program built with --features mpi and mpirun"
            ))),
            _ => Ok(Self::Alone),
        }
    }

    /// Which process this is, from 0.
    pub fn rank(&self) -> usize {
        match self {
            Self::Alone => 0,
            #[cfg(feature = "mpi")]
            Self::Mpi(m) => m.rank(),
        }
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        match self {
            Self::Alone => 1,
            #[cfg(feature = "mpi")]
            Self::Mpi(m) => m.size(),
        }
    }

    /// Whether this one writes what is written once.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// This process's rows of a batch.
    pub fn rows(&self, batch: usize) -> Range<usize> {
        let at = |rank: usize| batch * rank / self.size();
        at(self.rank())..at(self.rank() + 1)
    }

    /// The sum over all processes, in place.
    #[cfg_attr(not(feature = "mpi"), allow(unused_variables))]
    pub fn sum(&self, values: &mut [f32]) {
        match self {
            Self::Alone => {}
            #[cfg(feature = "mpi")]
            Self::Mpi(m) => values.chunks_mut(BUCKET).for_each(|part| m.sum(part)),
        }
    }

    /// The same of a few numbers that are counted or logged.
    #[cfg_attr(not(feature = "mpi"), allow(unused_variables))]
    pub fn sum_numbers(&self, values: &mut [f64]) {
        match self {
            Self::Alone => {}
            #[cfg(feature = "mpi")]
            Self::Mpi(m) => m.sum(values),
        }
    }

    /// Whether any process says so.
    pub fn any(&self, mine: bool) -> bool {
        let mut said = [f64::from(u8::from(mine))];
        self.sum_numbers(&mut said);
        said[0] > 0.0
    }

    /// What process `from` has, in place.
    #[cfg_attr(not(feature = "mpi"), allow(unused_variables))]
    pub fn broadcast(&self, from: usize, values: &mut [f32]) {
        match self {
            Self::Alone => {}
            #[cfg(feature = "mpi")]
            Self::Mpi(m) => values.chunks_mut(BUCKET).for_each(|part| m.broadcast(from, part)),
        }
    }

    /// Rows of all processes below each other, in the order of the batch: [rows of this one, ..] to [rows of all, ..].
    pub fn gather(&self, rows: &Tensor, batch: usize) -> Result<Tensor> {
        if self.size() == 1 {
            return Ok(rows.clone());
        }
        let mut dims = rows.dims().to_vec();
        let mine = self.rows(batch);
        if dims.first() != Some(&mine.len()) {
            return Err(Error::invalid(format!("{:?} are not this process's {} rows", dims, mine.len())));
        }
        dims[0] = batch;
        let per = rows.elem_count() / mine.len().max(1);
        // everything but the own rows is zero, so that the sum is the whole
        let mut all = vec![0f32; batch * per];
        all[mine.start * per..mine.end * per].copy_from_slice(&rows.flatten_all()?.to_vec1::<f32>()?);
        self.sum(&mut all);
        Ok(Tensor::from_vec(all, dims, &Device::Cpu)?.to_device(rows.device())?)
    }

    /// Ends all processes, after an error that only this one knows.
    pub fn abort(&self) {
        #[cfg(feature = "mpi")]
        if let Self::Mpi(m) = self {
            m.abort();
        }
    }
}

#[cfg(feature = "mpi")]
mod mpi_world {
    use crate::{Error, Result};
    use mpi::Threading;
    use mpi::collective::SystemOperation;
    use mpi::environment::Universe;
    use mpi::topology::SimpleCommunicator;
    use mpi::traits::*;

    /// MPI's world of processes.
    pub struct Mpi {
        world: SimpleCommunicator,
        // finalises MPI when it goes
        _universe: Universe,
    }

    impl Mpi {
        pub(super) fn join() -> Result<Self> {
            // only the thread that trains talks
            let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
                .ok_or_else(|| Error::invalid("MPI was initialised before"))?;
            Ok(Self { world: universe.world(), _universe: universe })
        }
        pub(super) fn rank(&self) -> usize {
            self.world.rank() as usize
        }
        pub(super) fn size(&self) -> usize {
            self.world.size() as usize
        }
        pub(super) fn sum<T: Equivalence + Copy>(&self, values: &mut [T]) {
            let mine = values.to_vec();
            self.world.all_reduce_into(&mine[..], values, SystemOperation::sum());
        }
        pub(super) fn broadcast(&self, from: usize, values: &mut [f32]) {
            self.world.process_at_rank(from as i32).broadcast_into(values);
        }
        pub(super) fn abort(&self) {
            self.world.abort(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_everything_is_as_it_was() {
        let w = World::Alone;
        let mut v = [1.0, 2.0];
        w.sum(&mut v);
        w.broadcast(0, &mut v);
        assert_eq!((v, w.rows(5), w.any(true), w.any(false)), ([1.0, 2.0], 0..5, true, false));
        let t = Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(w.gather(&t, 2).unwrap().dims(), [2, 3]);
    }
}
