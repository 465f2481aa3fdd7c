//! The benchmark of the command line, from inside an app.

use calora::bench::{Bench, SwapBench, measure, measure_swaps};
use calora::engine::Engine;

use crate::error::{EngineError, Result};

/// What is measured.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct BenchmarkOptions {
    /// Adapters to measure with; empty for none.
    #[uniffi(default = [])]
    pub adapters: Vec<String>,
    /// Tokens of the prompt.
    #[uniffi(default = 128)]
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    #[uniffi(default = 32)]
    pub output_tokens: u32,
    /// Runs; medians are reported.
    #[uniffi(default = 5)]
    pub runs: u32,
}

impl BenchmarkOptions {
    pub(crate) fn run(&self, engine: &Engine) -> Result<String> {
        let bench = Bench {
            open: calora::adapter::AdapterOptions::default(),
            adapters: self.adapters.iter().map(|path| (path.into(), 1.0)).collect(),
            prompt_tokens: self.prompt_tokens as usize,
            output_tokens: self.output_tokens as usize,
            runs: self.runs as usize,
        };
        let report = measure(engine, &bench, &mut || {})?;
        serde_json::to_string(&report).map_err(EngineError::internal)
    }
}

/// What is measured of many tasks over one model.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct SwapBenchmarkOptions {
    /// A folder of task files or PEFT folders of this model, more than `resident`.
    pub folder: String,
    /// How many of them are resident at once.
    #[uniffi(default = 16)]
    pub resident: u32,
    /// Tokens of the conversation in which the task is swapped.
    #[uniffi(default = 128)]
    pub prompt_tokens: u32,
    /// Swaps for each cache policy.
    #[uniffi(default = 20)]
    pub runs: u32,
}

impl SwapBenchmarkOptions {
    pub(crate) fn run(&self, engine: &Engine) -> Result<String> {
        let bench = SwapBench {
            folder: (&self.folder).into(),
            resident: self.resident as usize,
            prompt_tokens: self.prompt_tokens as usize,
            runs: self.runs as usize,
        };
        let report = measure_swaps(engine, &bench, &mut || {})?;
        serde_json::to_string(&report).map_err(EngineError::internal)
    }
}
