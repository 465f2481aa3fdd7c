//! calora for Kotlin and Swift.
//!
//! This crate converts and forwards; what it adds is one engine thread (`worker.rs`), so that a call from an app never
//! waits for a device on the app's thread, and streams that are pulled. The hand-written APIs of `android/` and `ios/`
//! are what apps see.
//!
//! Rules of the border: every function that can fail returns a `Result` (a panic in one that cannot is fatal in Swift);
//! prompts and answers are never logged; callbacks are for rare events only, tokens are pulled.

uniffi::setup_scaffolding!();

mod adapter;
mod availability;
mod bench;
mod channel;
mod config;
mod engine;
mod error;
mod event;
mod info;
mod library;
mod logging;
mod memory;
mod options;
mod pause;
mod router;
mod session;
mod stream;
mod worker;

pub use adapter::{AdapterInfo, AdapterOpenOptions, TaskAdapter, encrypt_adapter, inspect_adapter};
pub use availability::{Availability, UnavailableReason, availability};
pub use bench::{BenchmarkOptions, SwapBenchmarkOptions};
pub use config::{Activations, DeviceChoice, EngineConfig, LoadProgress, LoadState, WeightAccess};
pub use engine::Engine;
pub use error::EngineError;
pub use event::{EngineEvent, EventStream};
pub use info::{DeviceInfo, DeviceKind, MemoryUse, ModelInfo, Residency, ResidentAdapters, Statistics};
pub use library::{AdapterChange, AdapterEntry, AdapterLibrary};
pub use logging::{LogLevel, LogSink, set_log_level, set_log_sink};
pub use memory::{MemoryPlan, MemoryPolicy, MemoryPressure, TrimReport, memory_plan};
pub use options::{
    CachePolicy, ChoiceScore, FinishReason, GenerationOptions, Message, ResponseChunk, Role, ScaledAdapter,
    SessionConfig, SessionPriority, SwitchReport, Usage,
};
pub use router::{Doubt, RankedRoute, Route, Router, RouterConfig, Routing, read_routes};
pub use session::Session;
pub use stream::ResponseStream;

/// calora's version, as in the file names of a release.
#[uniffi::export]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
