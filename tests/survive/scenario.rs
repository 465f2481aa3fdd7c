//! Requests of several kinds on one engine, and everything that they give.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::panic)]

use calora::engine::{BoundAdapter, Engine};
use calora::session::{
    CachePolicy, FinishReason, GenerationOptions, ResponseStream, Session, SessionOptions,
};
use calora::weights::DType;
use calora::{Error, Result};

use crate::common::{self, random_tail};

pub fn adapter(engine: &Engine, seed: u64) -> (BoundAdapter, f32) {
    (engine.adapter(format!("task {seed}"), random_tail(engine.recipe(), 3, 2, DType::F32, seed)), 1.0)
}

pub fn session(engine: &Engine, adapters: &[(BoundAdapter, f32)]) -> Result<Session> {
    engine.session(SessionOptions { adapters: adapters.to_vec(), ..SessionOptions::default() })
}

pub fn greedy(max_tokens: usize) -> GenerationOptions {
    let ignore_end_of_turn = true;
    GenerationOptions { max_tokens: Some(max_tokens), ignore_end_of_turn, ..GenerationOptions::default() }
}

pub fn sampled(max_tokens: usize) -> GenerationOptions {
    let repetition_penalty = Some(1.2);
    GenerationOptions { temperature: Some(0.9), seed: Some(7), repetition_penalty, ..greedy(max_tokens) }
}

/// `n` tokens of the vocabulary, none of them special.
pub fn prompt(seed: u64, n: usize) -> Vec<u32> {
    let mut random = common::Random(seed);
    (0..n).map(|_| 3 + random.below(110) as u32).collect()
}

/// What a response gave; the last is the number of tokens that were cached.
#[derive(Clone, Debug, PartialEq)]
pub struct Given(pub Vec<u32>, pub FinishReason, pub usize, pub usize, pub usize);

/// Everything that the scenario gives, and how often a request had to be made again.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub given: Vec<Given>,
    pub likelihood: u64,
    pub failures: usize,
}

impl Outcome {
    /// Makes a request until it does not run out of memory; a failed one leaves the session as it was.
    fn request<T>(&mut self, session: &mut Session, mut work: impl FnMut(&mut Session) -> Result<T>) -> T {
        loop {
            let before = (session.tokens().to_vec(), session.messages().to_vec());
            match work(session) {
                Ok(value) => return value,
                Err(Error::OutOfMemory { .. }) => {
                    let after = (session.tokens().to_vec(), session.messages().to_vec());
                    assert_eq!(after, before);
                    self.failures += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub fn respond(&mut self, session: &mut Session, tokens: &[u32], options: &GenerationOptions) {
        let given = self.request(session, |session| {
            let mut stream = session.respond_to_tokens(tokens, options)?;
            loop {
                if let Some(given) = pull(&mut stream)? {
                    return Ok(given);
                }
            }
        });
        self.given.push(given);
    }

    fn open(&mut self, engine: &Engine, adapters: &[(BoundAdapter, f32)]) -> Session {
        loop {
            match session(engine, adapters) {
                Err(Error::OutOfMemory { .. }) => self.failures += 1,
                opened => return opened.unwrap(),
            }
        }
    }

    pub fn same(&self, other: &Self, n: usize, fault: &dyn std::fmt::Debug) {
        assert_eq!(self.likelihood, other.likelihood, "{fault:?} at call {n}");
        assert_eq!(self.given.len(), other.given.len());
        for (a, b) in self.given.iter().zip(&other.given) {
            assert_eq!((&a.0, a.1, a.2, a.3), (&b.0, b.1, b.2, b.3), "{fault:?} at call {n}");
            assert!(a.4 <= b.4, "{fault:?} at call {n}: {a:?} for {b:?}");
        }
    }
}

/// One chunk; the whole response when it was the last.
pub fn pull(stream: &mut ResponseStream<'_>) -> Result<Option<Given>> {
    let chunk = stream.next()?.unwrap();
    Ok(chunk.usage.map(|usage| {
        let (reason, output) = (chunk.finish_reason.unwrap(), stream.output().to_vec());
        Given(output, reason, usage.prompt_tokens, usage.output_tokens, usage.cached_tokens)
    }))
}

/// Two sessions in turn, one with an adapter; then a conversation that goes on, drawn; then a swap, a stack, and a
/// likelihood.
pub fn scenario(engine: &Engine) -> Outcome {
    let mut out = Outcome::default();
    let (a, b) = (adapter(engine, 1), adapter(engine, 2));
    let mut first = out.open(engine, std::slice::from_ref(&a));
    let mut second = out.open(engine, &[]);
    let (x, y) = (prompt(1, 15), prompt(2, 9));
    let mut given = [None, None];
    {
        let mut streams = [
            first.respond_to_tokens(&x, &greedy(7)).unwrap(),
            second.respond_to_tokens(&y, &sampled(5)).unwrap(),
        ];
        let mut open = [true, true];
        while open.contains(&true) {
            for i in (0..2).filter(|i| open[*i]).collect::<Vec<_>>() {
                match pull(&mut streams[i]) {
                    Ok(None) => {}
                    Ok(done) => (given[i], open[i]) = (done, false),
                    Err(Error::OutOfMemory { .. }) => (out.failures, open[i]) = (out.failures + 1, false),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    let [one, two] = given;
    match one {
        Some(one) => out.given.push(one),
        None => out.respond(&mut first, &x, &greedy(7)),
    }
    match two {
        Some(two) => out.given.push(two),
        None => out.respond(&mut second, &y, &sampled(5)),
    }
    let next = [first.tokens(), &prompt(3, 8)].concat();
    out.respond(&mut first, &next, &sampled(6));
    out.request(&mut first, |session| session.switch_to(std::slice::from_ref(&b)));
    let next = [first.tokens(), &prompt(4, 2)].concat();
    out.respond(&mut first, &next, &greedy(3));
    out.request(&mut first, |session| session.switch_to(&[a.clone(), (b.0.clone(), 0.5)]));
    let faded = GenerationOptions { adapter_scales: vec![0.0, 0.25], ..greedy(3) };
    out.respond(&mut first, &prompt(9, 11), &faded);
    out.respond(&mut first, &prompt(5, 27), &greedy(4));
    // What the stack computed stays in use, is put aside, is written over, and comes back.
    let (alone, stack) = (std::slice::from_ref(&b), [a.clone(), (b.0.clone(), 0.5)]);
    out.request(&mut first, |session| session.switch_with(alone, CachePolicy::Keep));
    let next = [first.tokens(), &prompt(7, 3)].concat();
    out.respond(&mut first, &next, &greedy(3));
    out.request(&mut first, |session| session.switch_with(&stack, CachePolicy::Restore));
    out.request(&mut first, |session| session.switch_with(alone, CachePolicy::Restore));
    out.respond(&mut first, &prompt(8, 5), &greedy(2));
    out.request(&mut first, |session| session.switch_with(&stack, CachePolicy::Restore));
    out.respond(&mut first, &prompt(5, 30), &greedy(4));
    let text = prompt(6, 13);
    out.likelihood = out.request(&mut second, |session| session.log_likelihood(&text, 5)).to_bits();
    out
}
