//! What a task brings besides its branches: instructions, a chat template, sampling defaults.

use super::options::GenerationOptions;
use crate::adapter::AdapterInfo;
use crate::error::Result;
use crate::text::chat::ChatTemplate;

/// Applied while the task is attached; the caller's own options come first.
#[derive(Clone, Debug, Default)]
pub struct TaskDefaults {
    /// Told to the model before the conversation, unless the session has instructions of its own.
    pub instructions: Option<String>,
    /// Replaces the model's chat template.
    pub chat_template: Option<ChatTemplate>,
    /// Between the session's defaults and the model's.
    pub options: GenerationOptions,
}

impl TaskDefaults {
    /// From an adapter's metadata; refuses a template that cannot be read and sampling values out of range.
    pub(crate) fn read(info: &AdapterInfo) -> Result<Self> {
        let sampling = |name: &str| info.sampling.as_ref().and_then(|s| s[name].as_f64());
        let options = GenerationOptions {
            max_tokens: info.max_tokens,
            temperature: sampling("temperature").map(|v| v as f32),
            top_k: sampling("top_k").map(|v| v as usize),
            top_p: sampling("top_p").map(|v| v as f32),
            min_p: sampling("min_p").map(|v| v as f32),
            repetition_penalty: sampling("repetition_penalty").map(|v| v as f32),
            stop: info.stop.clone(),
            ..GenerationOptions::default()
        };
        options.check()?;
        let chat_template = info.chat_template.as_deref().map(ChatTemplate::new).transpose()?;
        Ok(Self { instructions: info.system_prompt.clone(), chat_template, options })
    }
}
