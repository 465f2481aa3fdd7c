//! What a conversation's next answer is: told by an undisturbed engine, in a fresh session that computes all of it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use calora::engine::{BoundAdapter, Engine};
use calora::session::{FinishReason, GenerationOptions, Session, SessionOptions};
use calora::text::Message;

use crate::talk::{INSTRUCTIONS, PROMPTS};

/// An answer, or the beginning of one.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub text: String,
    pub finish: Option<FinishReason>,
}

/// Which conversation: a hash of contents with scales, whether there are instructions, what was said, the next prompt.
type Key = u64;

pub struct Reference {
    engine: Engine,
    adapters: Vec<BoundAdapter>,
    answers: Mutex<HashMap<Key, Arc<Answer>>>,
    likelihoods: Mutex<HashMap<Key, Arc<Vec<f64>>>>,
}

/// So many entries are kept, so that the tables are no leak themselves.
const MOST: usize = 500;

impl Reference {
    pub fn new(engine: Engine, adapters: Vec<BoundAdapter>) -> Self {
        Self { engine, adapters, answers: Mutex::default(), likelihoods: Mutex::default() }
    }

    /// Empties the tables.
    pub fn forget(&self) {
        *self.answers.lock().unwrap() = HashMap::new();
        *self.likelihoods.lock().unwrap() = HashMap::new();
    }

    /// The answer to a prompt, by its number.
    pub fn answer(&self, list: &[(usize, f32)], told: bool, said: &[Message], prompt: usize) -> Arc<Answer> {
        let key = key(list, told, said, prompt);
        if let Some(known) = self.answers.lock().unwrap().get(&key) {
            return known.clone();
        }
        let mut session = self.session(list, told, said);
        let response = session.respond(PROMPTS[prompt].0, &options(prompt)).unwrap().collect().unwrap();
        let (tokens, text, finish) = (response.tokens, response.text, Some(response.finish_reason));
        keep(&self.answers, key, Answer { tokens, text, finish })
    }

    /// How likely the choices of [`crate::talk`] are.
    pub fn likelihoods(
        &self,
        list: &[(usize, f32)],
        told: bool,
        said: &[Message],
        prompt: usize,
    ) -> Arc<Vec<f64>> {
        let key = key(list, told, said, prompt);
        if let Some(known) = self.likelihoods.lock().unwrap().get(&key) {
            return known.clone();
        }
        let likely =
            self.session(list, told, said).likelihoods(PROMPTS[prompt].0, &crate::talk::choices()).unwrap();
        keep(&self.likelihoods, key, likely)
    }

    fn session(&self, list: &[(usize, f32)], told: bool, said: &[Message]) -> Session {
        let adapters =
            list.iter().map(|(content, scale)| (self.adapters[*content].clone(), *scale)).collect();
        let instructions = told.then(|| INSTRUCTIONS.to_owned());
        let options = SessionOptions { adapters, instructions, ..SessionOptions::default() };
        let mut session = self.engine.session(options).unwrap();
        session.restore(said.to_vec()).unwrap();
        session
    }
}

/// The same options wherever a prompt is used, so that answers repeat.
pub fn options(prompt: usize) -> GenerationOptions {
    GenerationOptions { max_tokens: Some(PROMPTS[prompt].1), ..GenerationOptions::default() }
}

fn key(list: &[(usize, f32)], told: bool, said: &[Message], prompt: usize) -> Key {
    let mut hash = DefaultHasher::new();
    format!("{list:?} {told} {said:?} {prompt}").hash(&mut hash);
    hash.finish()
}

fn keep<T>(table: &Mutex<HashMap<Key, Arc<T>>>, key: Key, value: T) -> Arc<T> {
    let value = Arc::new(value);
    let mut table = table.lock().unwrap();
    if table.len() >= MOST {
        table.clear();
    }
    table.insert(key, value.clone());
    value
}
