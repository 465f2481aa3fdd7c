//! A conversation: one KV cache, one transcript, one response at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use calora::engine::BoundAdapter;

use crate::channel;
use crate::engine::Core;
use crate::error::{EngineError, Result};
use crate::options::{
    CachePolicy, ChoiceScore, GenerationOptions, Message, ScaledAdapter, SessionConfig, SessionPriority,
    SwitchReport,
};
use crate::stream::{Prompt, ResponseStream, Run};
use crate::worker::{Job, result};

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
    priority: SessionPriority,
    /// Whether something of several passes is in progress; what comes meanwhile waits here, so that a session does one
    /// thing after the other.
    occupied: Mutex<Option<Vec<Job>>>,
}

/// While it lives, the session's other jobs wait.
struct Occupied(Arc<Cell>);

impl Drop for Occupied {
    fn drop(&mut self) {
        if let Some(waiting) = self.0.occupied().take() {
            self.0.put_back(waiting);
        }
    }
}

impl Cell {
    pub(crate) fn new(core: Arc<Core>, session: calora::session::Session, priority: SessionPriority) -> Self {
        let cell = Self {
            core,
            inner: Mutex::default(),
            snapshot: Mutex::default(),
            closed: AtomicBool::new(false),
            priority,
            occupied: Mutex::default(),
        };
        cell.refresh(&session);
        *cell.lock() = Some(session);
        cell
    }

    /// Queues a job of this session; says whether the engine still takes any.
    pub(crate) fn post(&self, job: Job) -> bool {
        self.core.worker.post(self.priority, job)
    }

    /// Puts jobs back to where they stood.
    pub(crate) fn put_back(&self, jobs: Vec<Job>) {
        self.core.worker.put_back(self.priority, jobs);
    }

    fn occupied(&self) -> MutexGuard<'_, Option<Vec<Job>>> {
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a job may run now; it is kept, and comes back, if it may not.
    pub(crate) fn is_free(&self, job: impl FnOnce() -> Job) -> bool {
        match &mut *self.occupied() {
            Some(waiting) => {
                waiting.push(job());
                false
            }
            None => true,
        }
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
        let last = Job::Once(Box::new(move || {
            cell.lock().take();
        }));
        self.core.worker.post(SessionPriority::Foreground, last);
    }

    /// Something with the session on the engine thread, while no response is in progress.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&mut calora::session::Session) -> calora::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run_passes(|session| job(session).map(Some), |value, _| Ok(value.take())).await
    }

    /// Something of several passes of the device, a job each, while no response is in progress: `begin` makes what `pass`
    /// advances until it gives a result. It ends within a pass when nobody waits for it any more.
    pub(crate) async fn run_passes<S: Send + 'static, T: Send + 'static>(
        self: &Arc<Self>,
        begin: impl FnOnce(&mut calora::session::Session) -> calora::Result<S> + Send + 'static,
        mut pass: impl FnMut(&mut S, &mut calora::session::Session) -> calora::Result<Option<T>> + Send + 'static,
    ) -> Result<T> {
        self.check()?;
        if self.is_responding() {
            return Err(EngineError::Busy);
        }
        let (sender, receiver) = channel::bounded(1);
        let (mut begin, mut state) = (Some(begin), None);
        let advance = move |session: &mut calora::session::Session| {
            if let Some(begin) = begin.take() {
                state = Some(begin(session)?);
            }
            state.as_mut().map_or(Ok(None), |state| pass(state, session))
        };
        let passes = Passes { cell: self.clone(), advance: Box::new(advance), sender };
        if !self.post(passes.job(None)) {
            return Err(EngineError::closed("engine"));
        }
        result(receiver).await
    }
}

type Advance<T> = Box<dyn FnMut(&mut calora::session::Session) -> calora::Result<Option<T>> + Send>;

/// Something of several passes, between two of them.
struct Passes<T> {
    cell: Arc<Cell>,
    advance: Advance<T>,
    sender: channel::Sender<Result<T>>,
}

impl<T: Send + 'static> Passes<T> {
    /// The next pass; the first one occupies the session.
    fn job(self, occupied: Option<Occupied>) -> Job {
        Job::Once(Box::new(move || self.go(occupied)))
    }

    fn go(mut self, occupied: Option<Occupied>) {
        let cell = self.cell.clone();
        let occupied = match occupied {
            Some(occupied) => occupied,
            None if cell.occupied().is_none() => {
                *cell.occupied() = Some(Vec::new());
                Occupied(cell.clone())
            }
            None => {
                cell.is_free(|| self.job(None));
                return;
            }
        };
        // Nobody waits any more: the session is free again.
        if self.sender.is_closed() {
            return;
        }
        let given = match cell.lock().as_mut() {
            Some(session) => {
                let given = (self.advance)(session).map_err(EngineError::from).transpose();
                if given.is_some() {
                    cell.refresh(session);
                }
                given
            }
            None => Some(Err(EngineError::closed("session"))),
        };
        let sender = self.sender.clone();
        let given = given.or_else(|| {
            let goes_on = cell.post(self.job(Some(occupied)));
            (!goes_on).then(|| Err(EngineError::closed("engine")))
        });
        if let Some(given) = given {
            let _ = sender.try_send(given);
        }
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
        let begin = move |session: &mut calora::session::Session| session.begin_prewarm(&prompt_prefix);
        self.cell.run_passes(begin, |prewarming, session| Ok(prewarming.pass(session)?.then_some(()))).await
    }

    /// How likely each choice is as the answer to the prompt, in the order given. The conversation stays as it is.
    pub async fn classify(&self, prompt: String, choices: Vec<String>) -> Result<Vec<ChoiceScore>> {
        let scores = {
            let choices = choices.clone();
            let begin =
                move |session: &mut calora::session::Session| session.begin_likelihoods(&prompt, &choices);
            self.cell.run_passes(begin, |scoring, session| scoring.pass(session)).await?
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
