//! A response without its session: state that whoever holds the session advances, one pass of the device at a time.
//!
//! [`super::ResponseStream`] wraps it for callers that keep the session borrowed; an engine thread that serves several
//! sessions in turn keeps the two apart. Invariant: between two passes the device is free for other sessions; only the
//! last chunk commits to the session.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::cache::Ready;
use super::options::{FinishReason, GenerationOptions, ResponseChunk, Usage};
use super::resident::{ResidentAdapter, unfit_scales};
use super::sampler::Sampler;
use super::stop::StopTexts;
use super::{Message, Role, Session};
use crate::device::{Answer, Want};
use crate::error::{Error, Result};
use crate::text::TextStream;

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Prefill,
    /// A token was chosen and is not part of the output yet.
    Chosen(u32),
    /// The last token of the output is to be computed.
    Compute(u32),
    Over,
}

/// What a pass gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// No text became certain.
    Computing,
    /// A piece of text, or the end.
    Chunk(ResponseChunk),
}

/// A response in progress. It belongs to the session that began it; a session that begins another forgets it.
#[derive(Debug)]
pub struct Generation {
    /// Which of all generations this is.
    pub(super) serial: u64,
    phase: Phase,
    /// Whether the cache was touched.
    begun: bool,
    /// Prompt and output.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens of the prompt that the cache held.
    reused: usize,
    /// How many of them are not what computing them now would give.
    inexact: usize,
    /// Whether the device was made again meanwhile, and with it the cache.
    recovered: bool,
    /// The user's message, unless the prompt was given as tokens.
    prompt: Option<String>,
    text: String,
    decoder: Option<TextStream>,
    stops: StopTexts,
    sampler: Sampler,
    /// The session's adapters with scales of the request's own.
    scaled: Option<ResidentAdapter>,
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

impl Generation {
    pub(super) fn start(
        session: &mut Session,
        tokens: Vec<u32>,
        prompt: Option<String>,
        options: &GenerationOptions,
        start: Instant,
    ) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
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
        let scales = options.adapter_scales.as_slice();
        let scaled = match &session.adapters {
            _ if scales.is_empty() => None,
            Some(adapters) => Some(adapters.scaled(scales)?),
            None => return Err(unfit_scales(scales.len(), 0)),
        };
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        session.generation = serial;
        session.losses = 0;
        Ok(Self {
            serial,
            phase: Phase::Prefill,
            begun: false,
            prompt_len: tokens.len(),
            reused: 0,
            inexact: 0,
            recovered: false,
            prompt,
            text: String::new(),
            decoder,
            stops: StopTexts::new(&options.stop),
            sampler,
            scaled,
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

    /// Advances by at most one pass of the device. `session` is the one that began this.
    ///
    /// When the device is lost, the next calls have it made again and compute what was computed, a pass each; then the
    /// response goes on from where it was. After an error the session is as it was before the request.
    pub fn pass(&mut self, session: &mut Session) -> Result<Progress> {
        if session.generation != self.serial {
            self.phase = Phase::Over;
        }
        let result = self.scaled(session, Self::advance);
        self.or_roll_back(session, result)
    }

    /// Some work with the session under this request's scales.
    pub(super) fn scaled<T>(
        &mut self,
        session: &mut Session,
        work: impl FnOnce(&mut Self, &mut Session) -> T,
    ) -> T {
        let attached = self.scaled.clone().map(|scaled| session.adapters.replace(scaled));
        let result = work(self, session);
        if let Some(attached) = attached {
            session.adapters = attached;
        }
        result
    }

    /// Whether the next pass computes the last token of the output: passes of this kind can be one for several sessions,
    /// see [`pass_together`](super::pass_together).
    pub fn is_decoding(&self) -> bool {
        matches!(self.phase, Phase::Compute(_))
    }

    /// Whether the last chunk was given, or the response has failed.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// The tokens generated so far.
    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Ends a response that is in progress: the cache goes back to what it had in common with the prompt, which is all of
    /// it when the prompt continued the transcript.
    pub fn roll_back(&mut self, session: &mut Session) {
        if self.begun && !self.is_over() && session.generation == self.serial {
            session.cache.truncate(self.reused);
            session.cache.set_responding(false);
        }
        self.phase = Phase::Over;
    }

    fn advance(&mut self, session: &mut Session) -> Result<Progress> {
        match self.phase {
            Phase::Prefill => {
                if !self.prefill(session)? {
                    return Ok(self.recovering());
                }
            }
            Phase::Compute(token) => {
                let begun = Instant::now();
                let want = self.want();
                let Some(answer) = session.extend(&[token], want)? else { return Ok(self.recovering()) };
                return self.go_on(session, answer, begun);
            }
            Phase::Chosen(_) => {}
            Phase::Over => return Err(Error::Cancelled),
        }
        self.take_chosen(session)
    }

    /// What a pass over the last token of the output needs, if it can be computed now and at once.
    pub(super) fn ready(&self, session: &Session) -> Option<(u32, Want, Ready)> {
        let Phase::Compute(token) = self.phase else { return None };
        // A request that has lost a device goes on alone: a batch may be what took it down.
        let ready = session.cache.ready(self.scaled.as_ref().or(session.adapters.as_ref()))?;
        (session.generation == self.serial && session.losses == 0).then(|| (token, self.want(), ready))
    }

    /// Goes on with what the pass over the last token gave.
    pub(super) fn go_on(
        &mut self,
        session: &mut Session,
        answer: Answer,
        begun: Instant,
    ) -> Result<Progress> {
        self.choose(answer)?;
        self.clock.decode += begun.elapsed();
        self.take_chosen(session)
    }

    fn take_chosen(&mut self, session: &mut Session) -> Result<Progress> {
        match self.phase {
            Phase::Chosen(token) => self.take(session, token),
            _ => Ok(Progress::Computing),
        }
    }

    /// After an error the session is as it was before the request.
    pub(super) fn or_roll_back(
        &mut self,
        session: &mut Session,
        result: Result<Progress>,
    ) -> Result<Progress> {
        if result.is_err() {
            self.roll_back(session);
        }
        result
    }

    /// The pass was not the response's own: no rate counts its time.
    pub(super) fn recovering(&mut self) -> Progress {
        self.recovered = true;
        Progress::Computing
    }

    /// One chunk of the prompt; whether it was its turn.
    fn prefill(&mut self, session: &mut Session) -> Result<bool> {
        let begun = Instant::now();
        let want = self.want();
        if !std::mem::replace(&mut self.begun, true) {
            session.cache.set_responding(true);
            self.begin(session)?;
        }
        let is_last = self.prompt_len - session.cache.len() <= session.shared.prefill_chunk;
        let want = if is_last { want } else { Want::Nothing };
        let Some(answer) = session.step(&self.tokens, want)? else { return Ok(false) };
        if is_last {
            self.choose(answer)?;
            self.clock.first_token = self.clock.start.elapsed();
            if self.prompt.is_some() {
                session.put_instructions_aside(&self.tokens[..self.prompt_len]);
            }
        }
        self.clock.prefill += begun.elapsed();
        Ok(true)
    }

    /// Finds what of the prompt is computed already.
    fn begin(&mut self, session: &mut Session) -> Result<()> {
        if self.prompt.is_some() {
            session.recall_instructions(&self.tokens)?;
        }
        let adapters = session.adapters.as_ref();
        // The last token is always computed: its logits are wanted.
        let limit = self.tokens.len() - 1;
        self.reused = session.cache.begin(&session.residency, &self.tokens, adapters, limit)?;
        self.inexact = self.reused.saturating_sub(session.cache.exact(adapters));
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

    /// Makes a chosen token part of the output, or ends the response.
    fn take(&mut self, session: &mut Session, token: u32) -> Result<Progress> {
        if !self.ignore_end_of_turn && session.shared.end_of_turn.contains(&token) {
            return self.finish(session, String::new(), FinishReason::EndOfTurn);
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
        } else if session.cache.len() >= session.cache.positions() {
            FinishReason::ContextFull
        } else {
            self.phase = Phase::Compute(token);
            // Without a tokenizer there is no text to wait for.
            return Ok(match text.is_empty() && self.decoder.is_some() {
                true => Progress::Computing,
                false => Progress::Chunk(ResponseChunk { text, finish_reason: None, usage: None }),
            });
        };
        self.finish(session, text, reason)
    }

    /// Ends the response and makes it part of the session; `text` is what became certain in this pass.
    fn finish(
        &mut self,
        session: &mut Session,
        mut text: String,
        mut reason: FinishReason,
    ) -> Result<Progress> {
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
        let usage = self.usage(session);
        session.tokens.clone_from(&self.tokens);
        match self.prompt.take() {
            Some(prompt) => {
                session.messages.push(Message::new(Role::User, prompt));
                session.messages.push(Message::new(Role::Assistant, std::mem::take(&mut self.text)));
            }
            None => session.messages.clear(),
        }
        self.phase = Phase::Over;
        session.cache.set_responding(false);
        session.residency.prepare_next();
        Ok(Progress::Chunk(ResponseChunk { text, finish_reason: Some(reason), usage: Some(usage) }))
    }

    fn usage(&self, session: &Session) -> Usage {
        let rate = |tokens: usize, time: Duration| {
            let seconds = time.as_secs_f64();
            if tokens > 0 && seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
        };
        // Every pass of decoding begins with a token of the output; the last one is not always computed.
        let decoded = session.cache.len().saturating_sub(self.prompt_len);
        Usage {
            prompt_tokens: self.prompt_len,
            cached_tokens: if self.recovered { 0 } else { self.reused },
            inexact_tokens: self.inexact,
            output_tokens: self.output().len(),
            time_to_first_token: self.clock.first_token,
            prefill_tokens_per_second: rate(self.prompt_len - self.reused, self.clock.prefill),
            decode_tokens_per_second: rate(decoded, self.clock.decode),
        }
    }
}
