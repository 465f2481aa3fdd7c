//! Sessions and responses as plain values.

use std::sync::Arc;

use calora::session::FinishReason as Finish;

use crate::adapter::TaskAdapter;

/// An adapter and how strongly it acts.
#[derive(Clone, uniffi::Record)]
pub struct ScaledAdapter {
    /// The adapter.
    pub adapter: Arc<TaskAdapter>,
    /// 1 as trained, 0 as if it were not there.
    #[uniffi(default = 1.0)]
    pub scale: f32,
}

/// How much a session's work matters beside that of others of its engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Enum)]
pub enum SessionPriority {
    /// Somebody waits for it: sessions of this priority advance in turn, and decode together.
    #[default]
    Foreground,
    /// Nobody does: its work, one pass of the device at a time, runs only while no foreground work waits. It may wait for
    /// as long as that lasts.
    Background,
}

/// How a session begins.
#[derive(Clone, Default, uniffi::Record)]
pub struct SessionConfig {
    /// Adapters attached from the start; their ranks add up.
    #[uniffi(default = [])]
    pub adapters: Vec<ScaledAdapter>,
    /// What the model is told before the conversation; by default what the first adapter brings.
    #[uniffi(default = None)]
    pub instructions: Option<String>,
    /// Tokens that the session holds; by default the engine's context size.
    #[uniffi(default = None)]
    pub context_size: Option<u32>,
    /// How much its work matters beside that of other sessions: responses, classifications, prewarming. By default
    /// foreground.
    #[uniffi(default = None)]
    pub priority: Option<SessionPriority>,
}

/// How a response is generated; what is absent follows the adapter, then the model, then the stated default.
#[derive(Clone, Debug, Default, PartialEq, uniffi::Record)]
pub struct GenerationOptions {
    /// The most tokens that are generated; by default as many as the context holds.
    #[uniffi(default = None)]
    pub max_tokens: Option<u32>,
    /// Divides the logits; 0 is greedy, the default.
    #[uniffi(default = None)]
    pub temperature: Option<f32>,
    /// Only the k likeliest tokens; 0, the default, switches it off.
    #[uniffi(default = None)]
    pub top_k: Option<u32>,
    /// Only the likeliest tokens that together reach this probability, in (0, 1]; by default 1.
    #[uniffi(default = None)]
    pub top_p: Option<f32>,
    /// Only tokens at least this fraction as likely as the likeliest, in [0, 1]; by default 0.
    #[uniffi(default = None)]
    pub min_p: Option<f32>,
    /// Above 1 makes tokens seen so far less likely; by default 1.
    #[uniffi(default = None)]
    pub repetition_penalty: Option<f32>,
    /// Same seed, same model, same device: same text. By default a new one each time.
    #[uniffi(default = None)]
    pub seed: Option<u64>,
    /// Texts that end the response; they are not part of it.
    #[uniffi(default = [])]
    pub stop: Vec<String>,
    /// How strongly each attached adapter acts in this response, in the order in which they are attached: 1 as trained, 0 as
    /// if it were not there. By default the scales that they are attached with. What the conversation holds was computed
    /// with other scales, so a change computes it anew.
    #[uniffi(default = [])]
    pub adapter_scales: Vec<f32>,
}

impl From<&GenerationOptions> for calora::session::GenerationOptions {
    fn from(o: &GenerationOptions) -> Self {
        Self {
            max_tokens: o.max_tokens.map(|n| n as usize),
            temperature: o.temperature,
            top_k: o.top_k.map(|n| n as usize),
            top_p: o.top_p,
            min_p: o.min_p,
            repetition_penalty: o.repetition_penalty,
            seed: o.seed,
            stop: o.stop.clone(),
            adapter_scales: o.adapter_scales.clone(),
            ignore_end_of_turn: false,
        }
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Role {
    /// Instructions.
    System,
    /// The app's user.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What was said.
    pub content: String,
}

impl From<&calora::text::Message> for Message {
    fn from(m: &calora::text::Message) -> Self {
        use calora::text::Role as Speaker;
        let role = match m.role {
            Speaker::System => Role::System,
            Speaker::User => Role::User,
            Speaker::Assistant => Role::Assistant,
        };
        Self { role, content: m.content.clone() }
    }
}

impl From<&Message> for calora::text::Message {
    fn from(m: &Message) -> Self {
        use calora::text::Role as Speaker;
        let role = match m.role {
            Role::System => Speaker::System,
            Role::User => Speaker::User,
            Role::Assistant => Speaker::Assistant,
        };
        Self::new(role, m.content.as_str())
    }
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FinishReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop text appeared.
    StopSequence,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The context is full.
    ContextFull,
}

/// What a response cost.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct Usage {
    /// Tokens of the whole prompt, the conversation so far included.
    pub prompt_tokens: u32,
    /// How many of them were computed already. After a swap of adapters the rest is what the swap cost.
    pub cached_tokens: u32,
    /// How many of those other adapters had computed, as `CachePolicy::Keep` allows; 0 else.
    pub inexact_tokens: u32,
    /// Tokens generated.
    pub output_tokens: u32,
    /// From the first pull to the first token, in seconds.
    pub time_to_first_token: f64,
    /// Prompt tokens computed per second.
    pub prefill_tokens_per_second: f64,
    /// Tokens generated per second after the first.
    pub decode_tokens_per_second: f64,
}

/// A piece of a response.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct ResponseChunk {
    /// Text to append; whole characters.
    pub text: String,
    /// Set in the last chunk.
    pub finish_reason: Option<FinishReason>,
    /// Set in the last chunk.
    pub usage: Option<Usage>,
}

impl From<calora::session::ResponseChunk> for ResponseChunk {
    fn from(chunk: calora::session::ResponseChunk) -> Self {
        Self {
            text: chunk.text,
            finish_reason: chunk.finish_reason.map(|reason| match reason {
                Finish::EndOfTurn => FinishReason::EndOfTurn,
                Finish::StopSequence => FinishReason::StopSequence,
                Finish::MaxTokens => FinishReason::MaxTokens,
                Finish::ContextFull => FinishReason::ContextFull,
            }),
            usage: chunk.usage.map(|u| Usage {
                prompt_tokens: u.prompt_tokens as u32,
                cached_tokens: u.cached_tokens as u32,
                inexact_tokens: u.inexact_tokens as u32,
                output_tokens: u.output_tokens as u32,
                time_to_first_token: u.time_to_first_token.as_secs_f64(),
                prefill_tokens_per_second: u.prefill_tokens_per_second,
                decode_tokens_per_second: u.decode_tokens_per_second,
            }),
        }
    }
}

/// What becomes of a conversation's keys and values when a session goes on with other adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Enum)]
pub enum CachePolicy {
    /// Computed anew with the next response. Exact; costs a prefill of the conversation.
    #[default]
    Recompute,
    /// What the old adapters computed is put aside; what the new ones had computed before comes back. Exact; costs memory
    /// within the engine's prefix budget.
    Restore,
    /// The instructions keep their keys and values; the rest is computed anew. Approximate.
    KeepInstructions,
    /// Everything stays and nothing is computed. Approximate.
    Keep,
}

impl From<CachePolicy> for calora::session::CachePolicy {
    fn from(policy: CachePolicy) -> Self {
        match policy {
            CachePolicy::Recompute => Self::Recompute,
            CachePolicy::Restore => Self::Restore,
            CachePolicy::KeepInstructions => Self::KeepInstructions,
            CachePolicy::Keep => Self::Keep,
        }
    }
}

/// What a switch keeps and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct SwitchReport {
    /// Tokens of the conversation under the new adapters.
    pub transcript_tokens: u32,
    /// How many of them need not be computed with the next response.
    pub cached_tokens: u32,
    /// How many of those were computed through other adapters; 0 with an exact policy.
    pub inexact_tokens: u32,
    /// Bytes newly put aside for a way back; 0 where the budget has no room for them.
    pub put_aside_bytes: u64,
}

impl From<calora::session::SwitchReport> for SwitchReport {
    fn from(report: calora::session::SwitchReport) -> Self {
        Self {
            transcript_tokens: report.transcript_tokens as u32,
            cached_tokens: report.cached_tokens as u32,
            inexact_tokens: report.inexact_tokens as u32,
            put_aside_bytes: report.put_aside_bytes,
        }
    }
}

/// How likely one of several answers is.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct ChoiceScore {
    /// The answer.
    pub choice: String,
    /// Natural logarithm of the probability of its tokens after the prompt.
    pub log_likelihood: f64,
    /// Its share among the choices, from 0 to 1; all shares add up to 1.
    pub probability: f64,
}
