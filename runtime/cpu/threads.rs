//! The device's own thread pool: jobs of one step over its cores, in line where one thread is asked for.

use rayon::prelude::*;

use crate::error::{Error, Result};

/// Threads that run jobs.
pub(super) struct Workers {
    /// `None`: everything runs on the caller's thread.
    pool: Option<rayon::ThreadPool>,
    /// How many.
    pub(super) threads: usize,
}

impl Workers {
    /// `threads`, or as many as the machine runs at once.
    pub(super) fn new(threads: Option<usize>) -> Result<Self> {
        let threads = match threads {
            Some(0) => return Err(Error::option("threads", 0, "at least one thread computes")),
            Some(n) => n,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let pool = (threads > 1)
            .then(|| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|i| format!("calora-cpu-{i}"))
                    .build()
                    .map_err(|e| Error::NoDevice { wanted: "cpu".into(), reason: e.to_string() })
            })
            .transpose()?;
        Ok(Self { pool, threads })
    }

    /// Runs a whole pass inside the pool, so that its steps fork without waking anybody first.
    pub(super) fn enter<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(pass),
            None => pass(),
        }
    }

    /// Runs the jobs, each once, in any order.
    pub(super) fn each<J: Send>(&self, jobs: Vec<J>, run: impl Fn(J) + Sync + Send) {
        if self.pool.is_some() && jobs.len() > 1 {
            jobs.into_par_iter().with_max_len(1).for_each(run);
        } else {
            jobs.into_iter().for_each(run);
        }
    }

    /// Into how many pieces work of `products` multiplications is worth splitting, at most `most`.
    ///
    /// Forking costs some microseconds, in which one core does about 2^15 products; four pieces a thread even out
    /// cores that are slower or busy with something else.
    pub(super) fn pieces(&self, products: usize, most: usize) -> usize {
        (products >> 15).clamp(1, if self.threads > 1 { 4 * self.threads } else { 1 }).min(most.max(1))
    }
}
