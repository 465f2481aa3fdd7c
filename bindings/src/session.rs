//! A conversation: one KV cache, one transcript, one response at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use calora::engine::BoundAdapter;

use crate::engine::Core;
use crate::error::{EngineError, Result};
use crate::options::{
    CachePolicy, ChoiceScore, GenerationOptions, Message, ScaledAdapter, SessionConfig, SwitchReport,
};
use crate::stream::{Prompt, ResponseStream, Run};

/// What is known of a session without waiting for the engine thread.
#[derive(Default)]
struct Snapshot {
    messages: Vec<Message>,
    token_count: u32,
    context_size: u32,
    run: Option<Weak<Run>>,
}

impl Snapshot {
    /// The response in progress.
    fn running(&self) -> Option<Arc<Run>> {
        self.run.as_ref().and_then(Weak::upgrade).filter(|run| !run.is_over())
    }
}

/// A session's two halves: the engine's, which only the engine thread touches, and the snapshot.
pub(crate) struct Cell {
    pub(crate) core: Arc<Core>,
    inner: Mutex<Option<calora::session::Session>>,
    snapshot: Mutex<Snapshot>,
    closed: AtomicBool,
}

impl Cell {
    pub(crate) fn new(core: Arc<Core>, session: calora::session::Session) -> Self {
        let cell = Self {
            core,
            inner: Mutex::default(),
            snapshot: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        cell.refresh(&session);
        *cell.lock() = Some(session);
        cell
    }

    /// The engine's half; the engine thread never finds it locked.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<calora::session::Session>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down what a caller may ask for.
    pub(crate) fn refresh(&self, session: &calora::session::Session) {
        let mut snapshot = self.snapshot();
        snapshot.messages = session.messages().iter().map(Into::into).collect();
        snapshot.token_count = session.tokens().len() as u32;
        snapshot.context_size = session.context_size() as u32;
    }

    /// Whether session and engine are open.
    pub(crate) fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(EngineError::closed("session"));
        }
        self.core.check()
    }

    /// Whether a response is in progress.
    pub(crate) fn is_responding(&self) -> bool {
        self.snapshot().running().is_some()
    }

    /// Ends the response in progress and frees the cache.
    pub(crate) fn close(self: &Arc<Self>) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let running = self.snapshot().running();
        if let Some(run) = running {
            run.cancel();
        }
        let cell = self.clone();
        self.core.worker.post(move || {
            cell.lock().take();
        });
    }

    /// Something with the session on the engine thread, while no response is in progress.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&mut calora::session::Session) -> calora::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check()?;
        if self.is_responding() {
            return Err(EngineError::Busy);
        }
        let cell = self.clone();
        self.core
            .worker
            .run(move || {
                let mut inner = cell.lock();
                let session = inner.as_mut().ok_or_else(|| EngineError::closed("session"))?;
                let result = job(session);
                cell.refresh(session);
                Ok(result?)
            })
            .await
    }
}

/// Adapters as the engine takes them; refuses closed ones.
pub(crate) fn bound(adapters: &[ScaledAdapter]) -> Result<Vec<(BoundAdapter, f32)>> {
    adapters.iter().map(|a| Ok((a.adapter.bound()?, a.scale))).collect()
}

pub(crate) fn options(config: &SessionConfig) -> Result<calora::session::SessionOptions> {
    Ok(calora::session::SessionOptions {
        adapters: bound(&config.adapters)?,
        instructions: config.instructions.clone(),
        context_size: config.context_size.map(|n| n as usize),
        ..calora::session::SessionOptions::default()
    })
}

/// A conversation with the engine; dropping it closes it.
#[derive(uniffi::Object)]
pub struct Session {
    pub(crate) cell: Arc<Cell>,
}

#[uniffi::export]
impl Session {
    /// Answers a prompt; the text is pulled from the stream. `Busy` while another response is in progress.
    pub fn respond(&self, prompt: String, options: GenerationOptions) -> Result<Arc<ResponseStream>> {
        self.start(Prompt::Message(prompt), options)
    }

    /// Goes on with a text exactly as given: no chat template, no instructions, and the conversation starts anew.
    pub fn complete(&self, text: String, options: GenerationOptions) -> Result<Arc<ResponseStream>> {
        self.start(Prompt::Text(text), options)
    }

    /// Computes the beginning of the next prompt ahead of time. The conversation stays as it is.
    pub async fn prewarm(&self, prompt_prefix: String) -> Result<()> {
        self.cell.run(move |session| session.prewarm(&prompt_prefix)).await
    }

    /// How likely each choice is as the answer to the prompt, in the order given. The conversation stays as it is.
    pub async fn classify(&self, prompt: String, choices: Vec<String>) -> Result<Vec<ChoiceScore>> {
        let scores = {
            let choices = choices.clone();
            self.cell.run(move |session| session.likelihoods(&prompt, &choices)).await?
        };
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        let scored = choices.into_iter().zip(scores);
        Ok(scored
            .map(|(choice, log_likelihood)| ChoiceScore {
                choice,
                log_likelihood,
                probability: (log_likelihood - most).exp() / sum,
            })
            .collect())
    }

    /// Goes on with other adapters; an empty list detaches. No base weight moves and the conversation stays; the policy
    /// says what of it the next response computes anew.
    pub async fn switch_to(&self, adapters: Vec<ScaledAdapter>, policy: CachePolicy) -> Result<SwitchReport> {
        let adapters = bound(&adapters)?;
        self.cell.run(move |session| Ok(session.switch_with(&adapters, policy.into())?.into())).await
    }

    /// Forgets the conversation.
    pub async fn reset(&self) -> Result<()> {
        self.cell
            .run(|session| {
                session.reset();
                Ok(())
            })
            .await
    }

    /// Takes up a conversation that was held elsewhere; only for models with a chat template.
    pub async fn restore(&self, messages: Vec<Message>) -> Result<()> {
        self.cell.run(move |session| session.restore(messages.iter().map(Into::into).collect())).await
    }

    /// The conversation so far, as of the last response that ended by itself.
    pub fn messages(&self) -> Vec<Message> {
        self.cell.snapshot().messages.clone()
    }

    /// Tokens of the conversation so far.
    pub fn token_count(&self) -> u32 {
        self.cell.snapshot().token_count
    }

    /// Tokens that the session holds.
    pub fn context_size(&self) -> u32 {
        self.cell.snapshot().context_size
    }

    /// Whether a response is in progress.
    pub fn is_responding(&self) -> bool {
        self.cell.is_responding()
    }

    /// Ends a response in progress and frees the cache; every later call fails with `Closed`. Twice is fine.
    pub fn close(&self) {
        self.cell.close();
    }
}

impl Session {
    fn start(&self, prompt: Prompt, options: GenerationOptions) -> Result<Arc<ResponseStream>> {
        self.cell.check()?;
        let mut snapshot = self.cell.snapshot();
        if snapshot.running().is_some() {
            return Err(EngineError::Busy);
        }
        let run = Arc::new(Run::new(self.cell.clone(), prompt, options));
        snapshot.run = Some(Arc::downgrade(&run));
        Ok(Arc::new(ResponseStream::new(run)))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.cell.close();
    }
}
