//! Which of several tasks a request is for, with how sure that is, or "I don't know".
//!
//! A model is asked how likely each route's answer is after the request: a short label, where an adapter was trained to
//! give it, or a description of the task, without any training. Likelihoods alone know no "none of these": a trained
//! label is likely after any text. So the router also asks how near a request comes to examples (`familiar`).
//!
//! Invariant: routing changes nothing of its session but the cache; a request is computed once, whatever is asked of it.

mod familiar;
mod measured;
mod routes;

pub use routes::{Route, read_routes};

use crate::error::{Error, Result};
use crate::session::{CancelHandle, Scoring, Session};
use familiar::Familiar;
use measured::Measured;

/// Stands for the request in [`RouterOptions::prompt`].
const REQUEST: &str = "{request}";

/// What is asked where a description is to follow.
const ABOUT_DESCRIPTIONS: &str = "What kind of request is this? {request}";

/// Texts that say nothing: how likely a description is after them is how likely it is by itself.
const CONTENT_FREE: [&str; 3] = ["N/A", "...", "[MASK]"];

/// How a router asks and when it admits that it does not know.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterOptions {
    /// The user's message, in which `{request}` stands for the request; by default the request alone.
    pub prompt: Option<String>,
    /// Whether an answer counts by how much likelier the request makes it than a text without content does (contextual
    /// calibration, arXiv 2102.09690). For descriptions, whose own likelihoods differ; not for trained labels.
    pub calibrate: bool,
    /// The least probability of the likeliest route, from 0 to 1.
    pub confidence: f64,
    /// The least familiarity, from -1 to 1. By default the examples tell: all but a twentieth of them are as near to
    /// another one, and a request of fewer tokens than the shortest has too little in it. Without examples nothing is asked.
    pub familiarity: Option<f64>,
}

impl Default for RouterOptions {
    fn default() -> Self {
        Self { prompt: None, calibrate: false, confidence: 0.6, familiarity: None }
    }
}

impl RouterOptions {
    /// For routes whose answers are descriptions of tasks, and a model that was not trained to route.
    pub fn for_descriptions() -> Self {
        Self { prompt: Some(ABOUT_DESCRIPTIONS.into()), calibrate: true, ..Self::default() }
    }

    fn check(&self) -> Result<()> {
        if self.prompt.as_ref().is_some_and(|prompt| !prompt.contains(REQUEST)) {
            return Err(Error::option("prompt", "of a router", "must contain {request}"));
        }
        if !(0.0..=1.0).contains(&self.confidence) {
            return Err(Error::option("confidence", self.confidence, "must be between 0 and 1"));
        }
        match self.familiarity {
            Some(floor) if !(-1.0..=1.0).contains(&floor) => {
                Err(Error::option("familiarity", floor, "must be between -1 and 1"))
            }
            _ => Ok(()),
        }
    }
}

/// Why a router does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// There is no request.
    Empty,
    /// No route is likely enough.
    Unsure,
    /// The request is like none of the examples, or says less than any of them.
    Unfamiliar,
}

/// What a router says of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// All routes, the likeliest first: index and probability. The probabilities add up to 1.
    pub ranking: Vec<(usize, f64)>,
    /// How near the request comes to the nearest example, from -1 to 1; `None` without examples.
    pub familiarity: Option<f64>,
    /// Why the likeliest route is not to be taken, if it is not.
    pub doubt: Option<Doubt>,
}

impl Routing {
    /// The route to take; `None`: "I don't know".
    pub fn route(&self) -> Option<usize> {
        self.ranking.first().filter(|_| self.doubt.is_none()).map(|(route, _)| *route)
    }

    /// The probability of the likeliest route.
    pub fn confidence(&self) -> f64 {
        self.ranking.first().map_or(0.0, |(_, probability)| *probability)
    }
}

/// Routes, and what was measured of them. A session computes: one of the router's own, so that the tasks' caches stay
/// theirs, with the trained adapter attached or without one.
#[derive(Clone, Debug)]
pub struct Router {
    routes: Vec<Route>,
    answers: Vec<String>,
    options: RouterOptions,
    /// Texts without content that are not measured yet, the next one last.
    free: Vec<String>,
    /// Examples, likewise.
    examples: Vec<String>,
    measured: Measured,
    /// What its measurements are noted by, once that is known.
    subject: Option<Vec<u8>>,
    familiar: Option<Familiar>,
}

impl Router {
    /// A router that is ready: [`Router::begin`], then [`Router::measure`] to its end. `cancel` ends that with
    /// [`Error::Cancelled`].
    pub fn new(
        session: &mut Session,
        routes: Vec<Route>,
        options: RouterOptions,
        cancel: &CancelHandle,
    ) -> Result<Self> {
        let mut router = Self::begin(routes, options)?;
        loop {
            check(cancel)?;
            if !router.measure(session)? {
                return Ok(router);
            }
        }
    }

    /// A router that has measured nothing yet. Refuses routes that cannot be told apart, and thresholds that cannot work.
    pub fn begin(routes: Vec<Route>, options: RouterOptions) -> Result<Self> {
        options.check()?;
        routes::check(&routes)?;
        let answers = routes.iter().map(|route| route.answer.clone()).collect();
        let measured = Measured { prior: vec![0.0; routes.len()], seen: Vec::new() };
        let free = if options.calibrate { &CONTENT_FREE[..] } else { &[] };
        let owned = |texts: &[&str]| texts.iter().rev().map(|text| (*text).to_owned()).collect();
        let (free, examples) = (owned(free), owned(&routes::examples(&routes)));
        Ok(Self { routes, answers, options, free, examples, measured, subject: None, familiar: None })
    }

    /// Measures one more text: an example, which takes one pass, or a text without content. Whether more are left; until
    /// then [`Router::route`] goes without them. For callers that let others have the device meanwhile.
    ///
    /// Where the engine keeps what it computes (`prefix_folder`), all is noted, and the same router in a later process
    /// finds it at the first call.
    pub fn measure(&mut self, session: &mut Session) -> Result<bool> {
        if self.subject.is_none() && self.is_measuring() && session.takes_notes() {
            let subject = self.subject(session)?;
            let noted = session.noted(&subject);
            self.subject = Some(subject);
            let (answers, examples) = (self.answers.len(), self.examples.len());
            if let Some(known) = noted.and_then(|bytes| Measured::from_bytes(&bytes, answers, examples)) {
                self.measured = known;
                self.free.clear();
                self.examples.clear();
                self.settle();
                return Ok(false);
            }
        }
        if let Some(text) = self.free.last() {
            let scores = session.likelihoods(&self.prompt(text), &self.answers)?;
            let share = 1.0 / CONTENT_FREE.len() as f64;
            self.measured.prior.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score * share);
            self.free.pop();
        } else if let Some(example) = self.examples.last() {
            let (len, logits) = session.logits_after(&self.prompt(example))?;
            self.measured.seen.push((len, familiar::sketch(&logits)));
            self.examples.pop();
        }
        if self.is_measuring() {
            return Ok(true);
        }
        if let Some(subject) = &self.subject {
            session.note(subject, &self.measured.to_bytes());
        }
        self.settle();
        Ok(false)
    }

    fn is_measuring(&self) -> bool {
        !self.free.is_empty() || !self.examples.is_empty()
    }

    /// All is measured.
    fn settle(&mut self) {
        if self.familiar.is_none() && !self.measured.seen.is_empty() {
            let seen = std::mem::take(&mut self.measured.seen);
            self.familiar = Some(Familiar::new(seen, self.options.familiarity));
        }
    }

    /// Everything that decides what is measured, but for model, adapters and device: the prompts as tokens, so that the
    /// session's instructions and template count, and the answers.
    fn subject(&self, session: &Session) -> Result<Vec<u8>> {
        let mut hash = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| _ = hash.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        part(b"router");
        for texts in [&self.free, &self.examples] {
            part(&(texts.len() as u64).to_le_bytes());
            for text in texts {
                part(bytemuck::cast_slice(&session.prompt_tokens(&self.prompt(text), true)?));
            }
        }
        self.answers.iter().for_each(|answer| part(answer.as_bytes()));
        Ok(hash.finalize().as_bytes().to_vec())
    }

    /// The routes, which a [`Routing`] counts.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The familiarity below which it does not know; `None` without examples.
    pub fn least_familiarity(&self) -> Option<f64> {
        self.familiar.as_ref().map(|familiar| familiar.floor)
    }

    /// Which route a request is for. `session` is the one that the router was made with, or one like it.
    ///
    /// [`Error::ContextFull`] for a request that the session cannot hold, [`Error::Cancelled`] once `cancel` says so.
    pub fn route(&self, session: &mut Session, request: &str, cancel: &CancelHandle) -> Result<Routing> {
        let mut asking = self.begin_route(session, request)?;
        loop {
            check(cancel)?;
            if let Some(routing) = asking.pass(self, session)? {
                return Ok(routing);
            }
        }
    }

    /// [`Router::route`] for a caller that advances it itself and holds the session only meanwhile.
    pub fn begin_route(&self, session: &mut Session, request: &str) -> Result<Asking> {
        let scoring = match request.trim() {
            "" => None,
            _ => Some(session.begin_likelihoods(&self.prompt(request), &self.answers)?),
        };
        Ok(Asking { scoring, sketch: Vec::new() })
    }

    /// What an empty request is answered.
    fn nothing_asked(&self) -> Routing {
        let share = 1.0 / self.routes.len() as f64;
        let ranking = (0..self.routes.len()).map(|route| (route, share)).collect();
        Routing { ranking, familiarity: None, doubt: Some(Doubt::Empty) }
    }

    /// What follows from log-likelihoods of the answers, a sketch of what the model would say, and the prompt's length.
    fn judge(&self, scores: &[f64], sketch: &[f32], len: usize) -> Routing {
        let ranking = rank(scores.iter().zip(&self.measured.prior).map(|(score, prior)| score - prior));
        let familiarity = self.familiar.as_ref().map(|familiar| familiar.nearest(sketch));
        let mut routing = Routing { ranking, familiarity, doubt: None };
        if self.familiar.as_ref().zip(familiarity).is_some_and(|(familiar, near)| !familiar.takes(len, near))
        {
            routing.doubt = Some(Doubt::Unfamiliar);
        } else if routing.confidence() < self.options.confidence {
            routing.doubt = Some(Doubt::Unsure);
        }
        routing
    }

    fn prompt(&self, request: &str) -> String {
        match &self.options.prompt {
            Some(prompt) => prompt.replace(REQUEST, request),
            None => request.to_owned(),
        }
    }
}

/// A request that is being routed, one pass of the device at a time.
#[derive(Debug)]
pub struct Asking {
    /// Absent where there is no request.
    scoring: Option<Scoring>,
    sketch: Vec<f32>,
}

impl Asking {
    /// Advances by at most one pass; what the router says, once it knows. `router` and `session` are those that began this.
    pub fn pass(&mut self, router: &Router, session: &mut Session) -> Result<Option<Routing>> {
        let Self { scoring: Some(scoring), sketch } = self else { return Ok(Some(router.nothing_asked())) };
        let scores = scoring.pass_with(session, &mut |logits| *sketch = familiar::sketch(logits))?;
        Ok(scores.map(|scores| router.judge(&scores, sketch, scoring.prompt_len())))
    }
}

fn check(cancel: &CancelHandle) -> Result<()> {
    if cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Probabilities of log-likelihoods, the largest first; of equals the one given first.
fn rank(scores: impl Iterator<Item = f64>) -> Vec<(usize, f64)> {
    let mut ranking: Vec<_> = scores.enumerate().collect();
    let most = ranking.iter().fold(f64::NEG_INFINITY, |most, (_, score)| most.max(*score));
    ranking.iter_mut().for_each(|(_, score)| *score = (*score - most).exp());
    let sum: f64 = ranking.iter().map(|(_, share)| share).sum();
    ranking.iter_mut().for_each(|(_, share)| *share /= sum);
    ranking.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranking
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn probabilities_add_up_and_equals_keep_their_order() {
        let ranking = rank([-700.0, -701.0, -700.0].into_iter());
        assert_eq!(ranking.iter().map(|(route, _)| *route).collect::<Vec<_>>(), [0, 2, 1]);
        assert!((ranking.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((ranking[0].1 / ranking[2].1 - 1f64.exp()).abs() < 1e-9);
    }
}
