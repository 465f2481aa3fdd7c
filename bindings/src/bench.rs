//! The benchmark of the command line, from inside an app.

use calora::bench::{Bench, measure};
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
