//! A conversation with the engine: one transcript, one KV cache, the adapters it is held with.
//!
//! Invariant: [`Session::tokens`] and [`Session::messages`] change only when a response has ended by itself. A cancelled
//! or failed one leaves them as they were, and the cache as long as it was (or as long as what it had in common with the
//! cancelled prompt, if that one changed an earlier part of the conversation).

mod batch;
mod cache;
pub(crate) mod events;
mod generation;
mod likelihood;
mod notes;
pub mod options;
pub(crate) mod prefix_files;
pub(crate) mod prefixes;
mod prewarm;
pub mod random;
mod recover;
pub(crate) mod residency;
pub mod resident;
pub mod sampler;
pub(crate) mod seat;
pub(crate) mod shared;
pub(crate) mod slot;
pub mod stop;
mod stream;
mod switching;
mod task;

pub use batch::pass_together;
pub use events::EngineEvent;
pub use generation::{Generation, Progress};
pub use likelihood::{Scoring, log_likelihood};
pub use options::{FinishReason, GenerationOptions, Response, ResponseChunk, Usage};
pub use prewarm::Prewarming;
pub use residency::{ResidencyReport, ResidentList};
pub use resident::{BoundAdapter, ResidentAdapter};
pub use seat::{MakeDevice, Recovery};
pub use stream::{CancelHandle, ResponseStream};
pub use switching::{CachePolicy, SwitchReport};
pub use task::TaskDefaults;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::device::{Answer, Want};
use crate::error::{Error, Result};
use crate::text::chat::{ChatTemplate, Context};
use crate::text::{Message, Role};
use cache::Cache;
use residency::Residency;
use resident::AdapterList;
use shared::Shared;

/// How a session begins.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Adapters and the scales they are applied with; their ranks add up.
    pub adapters: Vec<(BoundAdapter, f32)>,
    /// What the model is told before the conversation: the system message of the chat template, or, where the model has
    /// none, text that stands before the first prompt.
    pub instructions: Option<String>,
    /// Positions of the KV cache; by default the engine's context size.
    pub context_size: Option<usize>,
    /// Defaults of the task, between the caller's options and the model's.
    pub defaults: GenerationOptions,
}

/// One KV cache and the conversation in it.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    residency: Arc<Residency>,
    cache: Cache,
    adapters: Option<ResidentAdapter>,
    instructions: Option<String>,
    defaults: GenerationOptions,
    messages: Vec<Message>,
    tokens: Vec<u32>,
    /// How conversations under the adapters in use begin, for [`Session::stable`].
    openings: Option<(Arc<AdapterList>, [Vec<u32>; 2])>,
    /// The serial number of the last response that was begun; earlier ones are void.
    generation: u64,
    /// Devices that were lost during the request.
    losses: u32,
}

impl Session {
    pub(crate) fn new(residency: Arc<Residency>, options: SessionOptions) -> Result<Self> {
        options.defaults.check()?;
        let adapters = residency.get(&options.adapters)?;
        let shared = residency.shared().clone();
        let positions = options.context_size.unwrap_or(shared.context_size);
        let cache = residency.place(|| Cache::new(&shared, positions))?;
        Ok(Self {
            shared,
            residency,
            cache,
            adapters,
            instructions: options.instructions,
            defaults: options.defaults,
            messages: Vec::new(),
            tokens: Vec::new(),
            openings: None,
            generation: 0,
            losses: 0,
        })
    }

    /// Answers a prompt: text arrives by [`ResponseStream::next`], and nothing is computed before it is asked for.
    ///
    /// With a chat template the prompt is the user's next message. A model without one gets no guessed format: the prompt
    /// is plain text that continues the transcript, exactly as given.
    pub fn respond(&mut self, prompt: &str, options: &GenerationOptions) -> Result<ResponseStream<'_>> {
        let generation = self.begin(prompt, options)?;
        Ok(ResponseStream::new(self, generation))
    }

    /// [`Session::respond`] for a caller that advances the response itself and holds the session only meanwhile.
    pub fn begin(&mut self, prompt: &str, options: &GenerationOptions) -> Result<Generation> {
        let start = Instant::now();
        let tokens = self.prompt_tokens(prompt, true)?;
        Generation::start(self, tokens, Some(prompt.to_owned()), options, start)
    }

    /// Goes on with a text exactly as given, no template around it, for a caller that advances the response itself. The
    /// transcript starts anew.
    pub fn begin_text(&mut self, text: &str, options: &GenerationOptions) -> Result<Generation> {
        let start = Instant::now();
        let tokens = self.shared.tokenizer()?.encode(text)?;
        Generation::start(self, tokens, None, options, start)
    }

    /// Continues a transcript given as tokens, which replaces the session's: `tokens` is all of it, and what the cache
    /// holds of it is not computed again. The list of messages starts anew.
    pub fn respond_to_tokens(
        &mut self,
        tokens: &[u32],
        options: &GenerationOptions,
    ) -> Result<ResponseStream<'_>> {
        let generation = self.begin_tokens(tokens, options)?;
        Ok(ResponseStream::new(self, generation))
    }

    /// [`Session::respond_to_tokens`] for a caller that advances the response itself.
    pub fn begin_tokens(&mut self, tokens: &[u32], options: &GenerationOptions) -> Result<Generation> {
        Generation::start(self, tokens.to_vec(), None, options, Instant::now())
    }

    /// Logits of a text given as tokens: `visit` gets each position from `from` on with its (vocabulary) logits. Uses and
    /// extends the cache, so that texts with a common beginning share its cost; the transcript stays as it is.
    pub fn visit_logits(
        &mut self,
        tokens: &[u32],
        from: usize,
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.check_prompt(tokens)?;
        let mut next = from.min(tokens.len() - 1);
        self.losses = 0;
        while next < tokens.len() {
            next = self.visit_some(tokens, next, &mut visit)?;
        }
        Ok(())
    }

    /// One pass of [`Session::visit_logits`], from position `next` on; where the next one goes on.
    fn visit_some(
        &mut self,
        tokens: &[u32],
        next: usize,
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<usize> {
        let held = self.cache.begin(&self.residency, tokens, self.adapters.as_ref(), next)?;
        if held < next {
            self.step(&tokens[..next], Want::Nothing)?;
            return Ok(next);
        }
        let Some(Answer::Logits(logits)) = self.step(tokens, Want::AllLogits)? else { return Ok(next) };
        let rows = logits.chunks_exact(self.shared.vocab());
        let end = next + rows.len();
        rows.zip(next..).for_each(|(logits, position)| visit(position, logits));
        Ok(end)
    }

    /// Forgets the conversation; the cache is kept for prompts that begin like it.
    pub fn reset(&mut self) {
        self.messages.clear();
        self.tokens.clear();
    }

    /// Frees the cache's memory; the next response makes a new one and computes the conversation anew. Whether there was
    /// one to free.
    pub fn release_cache(&mut self) -> bool {
        self.cache.release()
    }

    /// Takes up a conversation that was held elsewhere; it is computed with the next response. Only for models with a
    /// chat template.
    pub fn restore(&mut self, messages: Vec<Message>) -> Result<()> {
        let tokens = self.template_tokens(&messages, false)?;
        self.tokens = tokens;
        self.messages = messages;
        Ok(())
    }

    /// The conversation so far, instructions left out.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The tokens of the transcript: the last prompt and its response.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens whose keys and values the cache holds for the adapters in use.
    pub fn cached_tokens(&self) -> usize {
        self.cache.valid(self.adapters.as_ref()).len()
    }

    /// Positions of the cache.
    pub fn context_size(&self) -> usize {
        self.cache.positions()
    }

    /// The adapters in use.
    pub fn adapters(&self) -> Option<&ResidentAdapter> {
        self.adapters.as_ref()
    }

    /// The tokens of the transcript with a new prompt at its end; `open` adds what opens the model's turn.
    pub(crate) fn prompt_tokens(&self, prompt: &str, open: bool) -> Result<Vec<u32>> {
        if self.chat_template().is_some() {
            let user = Message::new(Role::User, prompt);
            return self.template_tokens(&[self.messages.as_slice(), &[user]].concat(), open);
        }
        if self.tokens.is_empty() {
            return self.opening_tokens(prompt, open);
        }
        Ok([self.tokens.as_slice(), &self.shared.tokenizer()?.encode_plain(prompt)?].concat())
    }

    /// The tokens of a conversation that begins with this prompt.
    fn opening_tokens(&self, prompt: &str, open: bool) -> Result<Vec<u32>> {
        if self.chat_template().is_some() {
            return self.template_tokens(&[Message::new(Role::User, prompt)], open);
        }
        let instructions = self.instructions().unwrap_or_default();
        self.shared.tokenizer()?.encode(&format!("{instructions}{prompt}"))
    }

    /// The tokens of a conversation by the chat template.
    fn template_tokens(&self, messages: &[Message], open: bool) -> Result<Vec<u32>> {
        let tokenizer = self.shared.tokenizer()?;
        let Some(template) = self.chat_template() else {
            return Err(Error::ChatTemplate { reason: "this model has none".into() });
        };
        let system = self.instructions().map(|text| Message::new(Role::System, text)).into_iter();
        let messages: Vec<Message> = system.chain(messages.iter().cloned()).collect();
        let config = &self.shared.tokenizer_config;
        let text = template.render(
            &messages,
            Context {
                bos_token: config.bos_token.as_deref().unwrap_or_default(),
                eos_token: config.eos_token.as_deref().unwrap_or_default(),
                add_generation_prompt: open,
                now: SystemTime::now(),
            },
        )?;
        // The template spells its own BOS.
        tokenizer.encode_plain(&text)
    }

    /// The tasks in use, in the order they were attached.
    fn tasks(&self) -> impl Iterator<Item = &TaskDefaults> {
        self.adapters.iter().flat_map(|resident| resident.adapters()).map(|(adapter, _)| adapter.task())
    }

    /// The first attached task's template, else the model's.
    fn chat_template(&self) -> Option<&ChatTemplate> {
        let task = self.tasks().find_map(|task| task.chat_template.as_ref());
        task.or(self.shared.tokenizer_config.chat_template.as_ref())
    }

    /// The session's own instructions, else the first attached task's.
    fn instructions(&self) -> Option<&str> {
        let task = || self.tasks().find_map(|task| task.instructions.as_deref());
        self.instructions.as_deref().or_else(task)
    }

    /// A request's options over the session's, the tasks', and the model's defaults.
    fn options(&self, request: &GenerationOptions) -> GenerationOptions {
        let mine = request.or(&self.defaults);
        self.tasks().fold(mine, |options, task| options.or(&task.options)).or(&self.shared.defaults)
    }

    /// Refuses what no device could run, before anything is computed.
    fn check_prompt(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let vocab = self.shared.vocab();
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::TokenOutOfRange { id: *id, vocab });
        }
        if tokens.len() > self.cache.positions() {
            return Err(Error::ContextFull { needed: tokens.len(), available: self.cache.positions() });
        }
        Ok(())
    }
}
