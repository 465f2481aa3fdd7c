//! How good the shipped router is: how many requests of its four kinds it sends right, and how many of other kinds it
//! does not know. The tables in models/adapters/router/README.md.
//!
//!     CALORA_TEST_DATA=... cargo run -p calora-models --example routing [ROWS OF EACH]
//!
//! The thresholds are the router's defaults, measured on the examples in `routes.json` (training rows); what is counted
//! here are held-out rows, and corpora that it was not trained on.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use calora::engine::{DeviceChoice, Engine, EngineOptions};
use calora::router::{Route, Router, RouterOptions, read_routes};
use calora::session::{CancelHandle, Session, SessionOptions};
use serde_json::Value;

/// Held-out requests: route, file, field.
const KNOWN: [(&str, &str, &str); 4] = [
    ("intent", "tasks/snips/validation.jsonl", "text"),
    ("spam", "tasks/sms-spam/test.jsonl", "text"),
    ("clean-question", "tasks/disfl-qa/dev.jsonl", "input"),
    ("sentiment", "tasks/sentence-polarity/validation.jsonl", "text"),
];

/// Requests of other kinds. The first two hold some commands that are of the first kind after all.
const OTHERS: [(&str, &str, &str); 5] = [
    ("commands of 150 kinds (clinc150)", "tasks/clinc150/validation.jsonl", "text"),
    ("commands of 64 kinds (hwu64)", "tasks/hwu64/test.jsonl", "text"),
    ("questions to a bank (banking77)", "tasks/banking77/train.jsonl", "text"),
    ("instructions (self-instruct)", "tasks/self-instruct/user_oriented_instructions.jsonl", "instruction"),
    ("lines of Shakespeare", "text/tinyshakespeare.txt", ""),
];

/// What people type that is no request.
const SHORT: [&str; 30] = [
    "hm",
    "ok",
    "yes",
    "no",
    "hello",
    "hi",
    "thanks",
    "what",
    "?",
    "...",
    "a",
    "1",
    "asdf",
    "uh",
    "well",
    "I see",
    "good morning",
    "never mind",
    "stop",
    "help",
    "123 456",
    "lol",
    "so",
    "test",
    "bye",
    "maybe",
    "not sure",
    "who",
    "why",
    "la la la",
];

/// What the tasks are, for a model that was not trained to tell.
const DESCRIPTIONS: [&str; 4] = [
    "play music, book a restaurant or tell the weather",
    "a text message to a friend",
    "a question about history or places",
    "a review of a film",
];

#[test]
fn measure() {
    main().unwrap()
}
fn main() -> Result<()> {
    let data = PathBuf::from(std::env::var_os("CALORA_TEST_DATA").context("set CALORA_TEST_DATA")?);
    let each = 300;
    let models = Path::new(env!("CARGO_MANIFEST_DIR"));
    let engine =
        Engine::load(models.join("base"), EngineOptions { device: DeviceChoice::Cpu, ..Default::default() })?;
    let adapter = engine.open_adapter(models.join("adapters/router"))?;
    let routes = read_routes(models.join("adapters/router/routes.json"))?;
    let known: Vec<_> =
        KNOWN.iter().map(|(_, file, field)| rows(&data, file, field, each)).collect::<Result<_>>()?;
    let mut others: Vec<(&str, Vec<String>)> = OTHERS
        .iter()
        .map(|(name, file, field)| Ok((*name, rows(&data, file, field, each)?)))
        .collect::<Result<_>>()?;
    others.push(("no requests (\"hm\")", SHORT.map(str::to_owned).to_vec()));

    let blind = |routes: &[Route]| -> Vec<Route> {
        routes.iter().map(|route| Route { examples: Vec::new(), ..route.clone() }).collect()
    };
    let described: Vec<Route> = routes
        .iter()
        .zip(DESCRIPTIONS)
        .map(|(route, text)| Route { answer: text.into(), ..route.clone() })
        .collect();
    let usual = RouterOptions::default();
    let asked = RouterOptions::for_descriptions();
    let raw = RouterOptions { calibrate: false, ..asked.clone() };
    for (title, trained, routes, options) in [
        ("trained labels, examples", true, routes.clone(), &usual),
        ("trained labels alone", true, blind(&routes), &usual),
        ("descriptions, examples", false, described.clone(), &asked),
        ("descriptions alone", false, blind(&described), &asked),
        ("descriptions alone, not calibrated", false, blind(&described), &raw),
    ] {
        let adapters = if trained { vec![(adapter.clone(), 1.0)] } else { Vec::new() };
        let mut session = engine.session(SessionOptions { adapters, ..SessionOptions::default() })?;
        let router = Router::new(&mut session, routes, options.clone(), &CancelHandle::default())?;
        println!("\n{title} (familiarity from {:.2?})", router.least_familiarity());
        report(&router, &mut session, &known, &others)?;
    }
    Ok(())
}

fn report(
    router: &Router,
    session: &mut Session,
    known: &[Vec<String>],
    others: &[(&str, Vec<String>)],
) -> Result<()> {
    let (mut count, mut likeliest, mut taken, mut right) = (0, 0, 0, 0);
    for ((name, ..), rows) in KNOWN.iter().zip(known) {
        for row in rows {
            let routing = router.route(session, row, &CancelHandle::default())?;
            let is = |route: usize| usize::from(router.routes()[route].name == *name);
            count += 1;
            likeliest += is(routing.ranking[0].0);
            taken += usize::from(routing.route().is_some());
            right += routing.route().map_or(0, is);
        }
    }
    let share = |part: usize, of: usize| 100.0 * part as f64 / of as f64;
    println!("| of {count} requests of the four kinds | |\n|---|---|");
    println!("| the likeliest route is right | {:.1} % |", share(likeliest, count));
    println!("| answered \"I don't know\" | {:.1} % |", share(count - taken, count));
    println!("| sent to the right task, of those sent | {:.1} % |", share(right, taken.max(1)));
    for (name, rows) in others {
        let mut unknown = 0;
        for row in rows {
            unknown += usize::from(router.route(session, row, &CancelHandle::default())?.route().is_none());
        }
        println!("| \"I don't know\" to {} {name} | {:.1} % |", rows.len(), share(unknown, rows.len()));
    }
    Ok(())
}

/// Evenly spaced rows of a file of JSON objects, or of plain lines of more than 20 letters.
fn rows(data: &Path, file: &str, field: &str, each: usize) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(data.join(file)).with_context(|| file.to_owned())?;
    let mut all = Vec::new();
    for line in text.lines() {
        let row = match field {
            "" if line.len() > 20 => line.to_owned(),
            "" => continue,
            field => {
                serde_json::from_str::<Value>(line)?[field].as_str().unwrap_or_default().trim().to_owned()
            }
        };
        // A special token would end the turn; a very long row does not fit.
        if !row.is_empty() && !row.contains("<|") && row.len() < 600 {
            all.push(row);
        }
    }
    let step = (all.len() / each).max(1);
    Ok(all.into_iter().step_by(step).take(each).collect())
}
