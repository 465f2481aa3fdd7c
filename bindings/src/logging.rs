//! The engine's log lines: to logcat on Android, and to whatever the app registers.
//!
//! Prompts and answers are never among them.

use std::sync::{Arc, Once, PoisonError, RwLock};

use log::{LevelFilter, Log, Metadata, Record};

use crate::error::EngineError;

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What may be wrong.
    Warning,
    /// What happens, a few lines a load.
    Info,
    /// Details.
    Debug,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warning => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}

impl From<log::Level> for LogLevel {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Error => Self::Error,
            log::Level::Warn => Self::Warning,
            log::Level::Info => Self::Info,
            log::Level::Debug | log::Level::Trace => Self::Debug,
        }
    }
}

/// Receives log lines, from any thread. It must not call the engine; what it throws is ignored.
#[uniffi::export(foreign)]
pub trait LogSink: Send + Sync {
    /// One line.
    fn on_log(&self, level: LogLevel, target: String, line: String) -> Result<(), EngineError>;
}

static SINK: RwLock<Option<Arc<dyn LogSink>>> = RwLock::new(None);

struct Forward;

impl Log for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        #[cfg(target_os = "android")]
        platform().log(record);
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sink) = sink {
            let (level, target) = (record.level().into(), record.target().to_owned());
            let _ = sink.on_log(level, target, record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[cfg(target_os = "android")]
fn platform() -> &'static android_logger::AndroidLogger {
    static LOGGER: std::sync::OnceLock<android_logger::AndroidLogger> = std::sync::OnceLock::new();
    LOGGER.get_or_init(|| {
        let config = android_logger::Config::default().with_tag("calora").with_max_level(LevelFilter::Debug);
        android_logger::AndroidLogger::new(config)
    })
}

/// A process has one logger; if the app's own Rust code has set one, that stays.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = log::set_logger(&Forward);
        log::set_max_level(LevelFilter::Warn);
    });
}

/// How much is logged; warnings and errors unless told.
#[uniffi::export]
pub fn set_log_level(level: LogLevel) {
    install();
    log::set_max_level(level.into());
}

/// Where log lines go besides logcat; `None` to stop.
#[uniffi::export]
pub fn set_log_sink(sink: Option<Arc<dyn LogSink>>) {
    install();
    *SINK.write().unwrap_or_else(PoisonError::into_inner) = sink;
}
