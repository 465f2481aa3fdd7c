//! One response as it is pulled: prefill in chunks, then a token at a time, as whole Unicode text.
//!
//! Invariant: between two passes the cancel flag is read and the device is free for other sessions. Only the last chunk
//! commits to the session; a stream that ends otherwise rolls back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::options::{FinishReason, GenerationOptions, Response, ResponseChunk, Usage};
use super::sampler::Sampler;
use super::stop::StopTexts;
use super::{Message, Role, Session};
use crate::device::{Answer, Want};
use crate::error::{Error, Result};
use crate::text::TextStream;

/// Cancels a response from any thread; cloning gives another handle to the same one.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Asks the response to stop: the pass in progress is the last. [`ResponseStream::next`] then gives
    /// [`Error::Cancelled`]. A response that has ended is not affected.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What the next pull does.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Prefill,
    /// A token was chosen and is not part of the output yet.
    Chosen(u32),
    /// The last token of the output is to be computed.
    Compute(u32),
    Over,
}

/// A response in progress; dropping it cancels.
#[derive(Debug)]
pub struct ResponseStream<'s> {
    session: &'s mut Session,
    cancel: CancelHandle,
    phase: Phase,
    /// Whether the cache was touched.
    begun: bool,
    /// Prompt and output.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens of the prompt that the cache held.
    reused: usize,
    /// The user's message, unless the prompt was given as tokens.
    prompt: Option<String>,
    text: String,
    decoder: Option<TextStream>,
    stops: StopTexts,
    sampler: Sampler,
    max_tokens: usize,
    ignore_end_of_turn: bool,
    clock: Clock,
}

#[derive(Debug)]
struct Clock {
    start: Instant,
    first_token: Duration,
    prefill: Duration,
    decode: Duration,
}

impl<'s> ResponseStream<'s> {
    pub(super) fn start(
        session: &'s mut Session,
        tokens: Vec<u32>,
        prompt: Option<String>,
        options: &GenerationOptions,
        start: Instant,
    ) -> Result<Self> {
        session.check_prompt(&tokens)?;
        let shared = &session.shared;
        let options = session.options(options);
        let sampler = Sampler::new(&options)?;
        let decoder = match shared.tokenizer() {
            Ok(tokenizer) => Some(TextStream::new(tokenizer.clone(), tokens.last().copied())?),
            // Tokens in, tokens out: a model without a tokenizer still runs.
            Err(e) if prompt.is_some() || !options.stop.is_empty() => return Err(e),
            Err(_) => None,
        };
        // The last token is always computed: its logits are wanted.
        let reused = session.cache.common(&tokens, session.adapters.as_ref(), tokens.len() - 1);
        Ok(Self {
            session,
            cancel: CancelHandle::default(),
            phase: Phase::Prefill,
            begun: false,
            prompt_len: tokens.len(),
            reused,
            prompt,
            text: String::new(),
            decoder,
            stops: StopTexts::new(&options.stop),
            sampler,
            max_tokens: options.max_tokens.unwrap_or(usize::MAX),
            ignore_end_of_turn: options.ignore_end_of_turn,
            tokens,
            clock: Clock {
                start,
                first_token: Duration::ZERO,
                prefill: Duration::ZERO,
                decode: Duration::ZERO,
            },
        })
    }

    /// A handle that cancels this response from another thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// The next piece of text; the last chunk carries the finish reason and the usage, then comes `None`.
    ///
    /// After an error (of which [`Error::Cancelled`] is one) the session is as it was before the request.
    #[allow(clippy::should_implement_trait)] // an Iterator could not give the error once and then end by itself
    pub fn next(&mut self) -> Result<Option<ResponseChunk>> {
        if matches!(self.phase, Phase::Over) {
            return Ok(None);
        }
        let result = self.pull();
        if result.is_err() {
            self.roll_back();
        }
        result.map(Some)
    }

    /// The rest of the response at once.
    pub fn collect(mut self) -> Result<Response> {
        let mut text = String::new();
        while let Some(chunk) = self.next()? {
            text += &chunk.text;
            if let (Some(finish_reason), Some(usage)) = (chunk.finish_reason, chunk.usage) {
                return Ok(Response { text, tokens: self.output().to_vec(), finish_reason, usage });
            }
        }
        // Only reached on a stream that had given its last chunk already.
        Err(Error::Cancelled)
    }

    /// The tokens generated so far.
    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    fn pull(&mut self) -> Result<ResponseChunk> {
        loop {
            if self.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            match self.phase {
                Phase::Prefill => self.prefill()?,
                Phase::Compute(token) => {
                    let begun = Instant::now();
                    let want = self.want();
                    let session = &mut *self.session;
                    let adapters = session.adapters.as_ref();
                    let answer = session.cache.extend(&session.shared, &[token], adapters, want)?;
                    self.choose(answer)?;
                    self.clock.decode += begun.elapsed();
                }
                Phase::Chosen(token) => {
                    if let Some(chunk) = self.take(token)? {
                        return Ok(chunk);
                    }
                }
                Phase::Over => return Err(Error::Cancelled),
            }
        }
    }

    /// One chunk of the prompt.
    fn prefill(&mut self) -> Result<()> {
        let begun = Instant::now();
        let want = self.want();
        let session = &mut *self.session;
        let adapters = session.adapters.as_ref();
        if !std::mem::replace(&mut self.begun, true) {
            session.cache.truncate(self.reused, adapters);
        }
        let is_last = self.prompt_len - session.cache.len() <= session.shared.prefill_chunk;
        let want = if is_last { want } else { Want::Nothing };
        let answer = session.cache.step(&session.shared, &self.tokens, adapters, want)?;
        if is_last {
            self.choose(answer)?;
            self.clock.first_token = self.clock.start.elapsed();
        }
        self.clock.prefill += begun.elapsed();
        Ok(())
    }

    fn want(&self) -> Want {
        if self.sampler.is_plain_greedy() { Want::Argmax } else { Want::LastLogits }
    }

    /// The next token from what the device gave.
    fn choose(&mut self, answer: Answer) -> Result<()> {
        let token = match answer {
            Answer::Token(token) => token,
            Answer::Logits(mut logits) => self.sampler.sample(&mut logits, &self.tokens)?,
            Answer::Nothing => {
                let reason = "the device gave no result".into();
                return Err(Error::Gpu { what: "a forward pass".into(), reason });
            }
        };
        self.phase = Phase::Chosen(token);
        Ok(())
    }

    /// Makes a chosen token part of the output, or ends the response; `None` if no text became certain.
    fn take(&mut self, token: u32) -> Result<Option<ResponseChunk>> {
        if !self.ignore_end_of_turn && self.session.shared.end_of_turn.contains(&token) {
            return self.finish(String::new(), FinishReason::EndOfTurn).map(Some);
        }
        self.tokens.push(token);
        let piece = match &mut self.decoder {
            Some(decoder) => decoder.push(token)?,
            None => String::new(),
        };
        let (text, stopped) = self.stops.push(&piece);
        self.text += &text;
        let reason = if stopped {
            FinishReason::StopSequence
        } else if self.output().len() >= self.max_tokens {
            FinishReason::MaxTokens
        } else if self.session.cache.len() >= self.session.cache.positions() {
            FinishReason::ContextFull
        } else {
            self.phase = Phase::Compute(token);
            let chunk = ResponseChunk { text, finish_reason: None, usage: None };
            // Without a tokenizer there is no text to wait for.
            return Ok((!chunk.text.is_empty() || self.decoder.is_none()).then_some(chunk));
        };
        self.finish(text, reason).map(Some)
    }

    /// Ends the response and makes it part of the session; `text` is what became certain in this pull.
    fn finish(&mut self, mut text: String, mut reason: FinishReason) -> Result<ResponseChunk> {
        if reason != FinishReason::StopSequence
            && let Some(decoder) = &mut self.decoder
        {
            let (rest, stopped) = self.stops.push(&decoder.finish()?);
            let rest = if stopped { rest } else { rest + &self.stops.finish() };
            if stopped {
                reason = FinishReason::StopSequence;
            }
            self.text += &rest;
            text += &rest;
        }
        let usage = self.usage();
        let session = &mut *self.session;
        session.tokens.clone_from(&self.tokens);
        match self.prompt.take() {
            Some(prompt) => {
                session.messages.push(Message::new(Role::User, prompt));
                session.messages.push(Message::new(Role::Assistant, std::mem::take(&mut self.text)));
            }
            None => session.messages.clear(),
        }
        self.phase = Phase::Over;
        Ok(ResponseChunk { text, finish_reason: Some(reason), usage: Some(usage) })
    }

    fn usage(&self) -> Usage {
        let rate = |tokens: usize, time: Duration| {
            let seconds = time.as_secs_f64();
            if tokens > 0 && seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
        };
        // Every pass of decoding begins with a token of the output; the last one is not always computed.
        let decoded = self.session.cache.len().saturating_sub(self.prompt_len);
        Usage {
            prompt_tokens: self.prompt_len,
            cached_tokens: self.reused,
            output_tokens: self.output().len(),
            time_to_first_token: self.clock.first_token,
            prefill_tokens_per_second: rate(self.prompt_len - self.reused, self.clock.prefill),
            decode_tokens_per_second: rate(decoded, self.clock.decode),
        }
    }

    /// The cache back to what it had in common with the prompt: all of it, when the prompt continued the transcript.
    fn roll_back(&mut self) {
        if self.begun {
            let session = &mut *self.session;
            session.cache.truncate(self.reused, session.adapters.as_ref());
        }
        self.phase = Phase::Over;
    }
}

impl Drop for ResponseStream<'_> {
    fn drop(&mut self) {
        if !matches!(self.phase, Phase::Over) {
            self.roll_back();
        }
    }
}
