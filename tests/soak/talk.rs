//! A session, and what the model knows of it.

use std::collections::VecDeque;

use calora::session::Session;

/// What the model is told in every second session.
pub const INSTRUCTIONS: &str = "you know all tales";

/// Prompts, and the most tokens of their answers.
pub const PROMPTS: [(&str, usize); 6] = [
    ("tell me of the sea", 8),
    ("tell me of the sea and of the wind", 3),
    ("and now", 6),
    ("more", 1),
    ("who was it that came home", 5),
    ("once upon a time", 7),
];

/// What likelihoods are asked of.
pub fn choices() -> Vec<String> {
    ["yes", "no", "never again"].map(str::to_owned).to_vec()
}

pub struct Talk {
    pub session: Session,
    /// Contents and scales that are attached.
    pub list: Vec<(usize, f32)>,
    /// Whether it has instructions of its own.
    pub told: bool,
    /// Whether a switch allowed an approximate answer and nothing has ended that yet.
    pub inexact: bool,
    /// What was done to it last.
    pub log: VecDeque<String>,
}

impl Talk {
    pub fn new(session: Session, list: Vec<(usize, f32)>, told: bool) -> Self {
        Self { session, list, told, inexact: false, log: VecDeque::new() }
    }

    pub fn note(&mut self, what: String) {
        self.log.push_back(what);
        if self.log.len() > 12 {
            self.log.pop_front();
        }
    }
}
