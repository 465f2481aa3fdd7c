//! The router: what it picks, what it does not know, and that it disturbs nobody.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use calora::engine::{DeviceChoice, Engine, EngineOptions};
use calora::router::{Doubt, Route, Router, RouterOptions, Routing, read_routes};
use calora::session::{CancelHandle, GenerationOptions, Session, SessionOptions};
use calora::{Error, Result};

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(path)
}

fn engine() -> Engine {
    let options = EngineOptions { device: DeviceChoice::Cpu, ..EngineOptions::default() };
    Engine::load(shipped("base"), options).unwrap()
}

/// A session with the trained adapter.
fn trained(engine: &Engine) -> Session {
    let adapters = vec![(engine.open_adapter(shipped("adapters/router")).unwrap(), 1.0)];
    engine.session(SessionOptions { adapters, ..SessionOptions::default() }).unwrap()
}

fn plain(engine: &Engine) -> Session {
    engine.session(SessionOptions::default()).unwrap()
}

fn routes() -> Vec<Route> {
    read_routes(shipped("adapters/router/routes.json")).unwrap()
}

fn without_examples(mut routes: Vec<Route>) -> Vec<Route> {
    routes.iter_mut().for_each(|route| route.examples.clear());
    routes
}

fn new(session: &mut Session, routes: Vec<Route>, options: RouterOptions) -> Result<Router> {
    Router::new(session, routes, options, &CancelHandle::default())
}

fn ask(router: &Router, session: &mut Session, request: &str) -> Routing {
    router.route(session, request, &CancelHandle::default()).unwrap()
}

fn name<'r>(router: &'r Router, routing: &Routing) -> Option<&'r str> {
    routing.route().map(|route| router.routes()[route].name.as_str())
}

/// Requests as people make them, none from a data set.
const REQUESTS: [(&str, &str); 8] = [
    ("wake me with some quiet piano music", "intent"),
    ("get us a table for five somewhere with good noodles", "intent"),
    ("CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize", "spam"),
    ("Running ten minutes late, order me a tea please", "spam"),
    ("What is the longest, uh, I mean the widest river in France?", "clean-question"),
    ("How many people work in no sorry live in the capital?", "clean-question"),
    ("a warm , funny and deeply moving film", "sentiment"),
    ("dull , predictable and far too long", "sentiment"),
];

#[test]
fn the_shipped_router_finds_the_task_and_the_untouched_base_does_not() {
    let engine = engine();
    let right = |session: &mut Session| {
        let router = new(session, routes(), RouterOptions::default()).unwrap();
        let found = REQUESTS.map(|(request, task)| {
            let routing = ask(&router, session, request);
            let sum: f64 = routing.ranking.iter().map(|(_, probability)| probability).sum();
            assert!((sum - 1.0).abs() < 1e-9 && routing.ranking.len() == 4);
            assert!(routing.ranking.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            (name(&router, &routing) == Some(task), routing.confidence() > 0.75)
        });
        found.into_iter().filter(|found| *found == (true, true)).count()
    };
    assert!(right(&mut trained(&engine)) >= 7);
    assert!(right(&mut plain(&engine)) <= 4, "it is the adapter that knows");
}

/// A trained label is likely after anything; the examples tell that a request is like nothing.
#[test]
fn what_is_like_no_example_is_unknown_however_sure_the_labels_are() {
    let engine = engine();
    let mut session = trained(&engine);
    let blind = new(&mut session, without_examples(routes()), RouterOptions::default()).unwrap();
    let router = new(&mut session, routes(), RouterOptions::default()).unwrap();
    assert_eq!(blind.least_familiarity(), None);
    let strange = ["hm", "Hm.", "ok", "1", "...", "qwertyuiop", "la la la", "123 456", "blah blah", "?"];
    let (mut fooled, mut known) = (0, 0);
    for request in strange {
        let routing = ask(&blind, &mut session, request);
        assert_eq!(routing.familiarity, None);
        fooled += usize::from(routing.route().is_some());
        let routing = ask(&router, &mut session, request);
        known += usize::from(routing.route().is_some());
        let least = router.least_familiarity().unwrap();
        let near = routing.familiarity.unwrap() >= least;
        assert!(near || routing.doubt == Some(Doubt::Unfamiliar), "{routing:?}");
    }
    assert!(fooled >= 5, "labels alone know an answer to {fooled} of {}", strange.len());
    assert_eq!(known, 0, "of {fooled}");
    // Long enough and still like nothing.
    let foreign = ask(&router, &mut session, "the lieutenant general of the empire shall decline");
    assert_eq!(foreign.doubt, Some(Doubt::Unfamiliar), "{foreign:?}");
}

#[test]
fn thresholds_are_the_callers() {
    let engine = engine();
    let mut session = trained(&engine);
    let request = REQUESTS[0].0;
    let mut with = |confidence, familiarity| {
        let options = RouterOptions { confidence, familiarity, ..RouterOptions::default() };
        let router = new(&mut session, routes(), options).unwrap();
        ask(&router, &mut session, request)
    };
    let usual = with(0.6, None);
    assert_eq!(usual.doubt, None);
    let unsure = with(1.0, None);
    assert_eq!((unsure.doubt, unsure.route()), (Some(Doubt::Unsure), None));
    assert_eq!((unsure.ranking, unsure.familiarity), (usual.ranking.clone(), usual.familiarity));
    let unfamiliar = with(0.0, Some(1.0));
    assert_eq!((unfamiliar.doubt, unfamiliar.route()), (Some(Doubt::Unfamiliar), None));
    assert_eq!(with(0.0, Some(-1.0)).doubt, None);
    for (confidence, familiarity) in [(1.1, None), (f64::NAN, None), (0.5, Some(2.0))] {
        let options = RouterOptions { confidence, familiarity, ..RouterOptions::default() };
        assert!(matches!(new(&mut session, routes(), options), Err(Error::InvalidOption { .. })));
    }
}

#[test]
fn an_empty_request_is_no_request() {
    let engine = engine();
    let mut session = trained(&engine);
    let router = new(&mut session, without_examples(routes()), RouterOptions::default()).unwrap();
    let before = engine.counters();
    for request in ["", " \n\t"] {
        let routing = ask(&router, &mut session, request);
        assert_eq!((routing.route(), routing.doubt), (None, Some(Doubt::Empty)));
        assert_eq!(routing.ranking, [0, 1, 2, 3].map(|route| (route, 0.25)));
    }
    assert_eq!(engine.counters(), before, "nothing is computed for it");
    let long = "and so on ".repeat(400);
    let error = router.route(&mut session, &long, &CancelHandle::default()).unwrap_err();
    assert!(matches!(error, Error::ContextFull { .. }), "{error}");
}

#[test]
fn routes_that_cannot_be_told_apart_are_refused() {
    let engine = engine();
    let mut session = trained(&engine);
    let route = |name: &str, answer: &str, examples: &[&str]| Route {
        name: name.into(),
        answer: answer.into(),
        examples: examples.iter().map(|text| (*text).to_owned()).collect(),
    };
    for (option, routes) in [
        ("routes", vec![route("a", "one", &[])]),
        ("routes", vec![route("a", "one", &[]), route("b", "one", &[])]),
        ("routes", vec![route("a", "one", &[]), route("a", "two", &[])]),
        ("answer", vec![route("a", "one", &[]), route("b", "", &[])]),
        (
            "examples",
            vec![route("a", "one", &["x", "y", "x", "x", "x", " x", "x", "x"]), route("b", "two", &[])],
        ),
    ] {
        let error = new(&mut session, routes, RouterOptions::default()).unwrap_err();
        assert!(matches!(&error, Error::InvalidOption { option: of, .. } if of == option), "{error}");
    }
    let options = RouterOptions { prompt: Some("no place".into()), ..RouterOptions::default() };
    assert!(new(&mut session, routes(), options).is_err());
}

#[test]
fn a_cancelled_router_says_so_and_goes_on_when_asked_again() {
    let engine = engine();
    let mut session = trained(&engine);
    let cancelled = CancelHandle::default();
    cancelled.cancel();
    let error = Router::new(&mut session, routes(), RouterOptions::default(), &cancelled).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    let router = new(&mut session, without_examples(routes()), RouterOptions::default()).unwrap();
    let before = engine.counters();
    assert!(matches!(router.route(&mut session, "play it", &cancelled), Err(Error::Cancelled)));
    assert_eq!(engine.counters(), before);
    assert_eq!(name(&router, &ask(&router, &mut session, REQUESTS[0].0)), Some("intent"));
}

/// With a folder for what was computed, a later process measures nothing again.
#[test]
fn what_was_measured_outlives_the_process() {
    let scratch = tempfile::tempdir().unwrap();
    let start = |folder: Option<&Path>, with_adapter: bool, routes: Vec<Route>, options: RouterOptions| {
        let prefix_folder = folder.map(Path::to_owned);
        let load = EngineOptions { device: DeviceChoice::Cpu, prefix_folder, ..EngineOptions::default() };
        let engine = Engine::load(shipped("base"), load).unwrap();
        let mut session = if with_adapter { trained(&engine) } else { plain(&engine) };
        let router = new(&mut session, routes, options).unwrap();
        let passes = engine.counters().passes;
        let routings = REQUESTS.map(|(request, _)| ask(&router, &mut session, request));
        (passes, router.least_familiarity(), routings)
    };
    let routes = || {
        let few = |route: Route| Route { examples: route.examples[..4].to_vec(), ..route };
        routes().into_iter().map(few).collect::<Vec<_>>()
    };
    for options in [RouterOptions::default, RouterOptions::for_descriptions] {
        let folder = scratch.path().join(if options().calibrate { "descriptions" } else { "labels" });
        let again = || start(Some(&folder), true, routes(), options());
        let alone = start(None, true, routes(), options());
        let first = again();
        assert!(alone.0 > 8 && first == alone, "{} passes, {}", first.0, alone.0);
        assert_eq!(again(), (0, first.1, first.2.clone()), "the same, and no pass");
        // Thresholds are no part of what is measured.
        let bold = RouterOptions { familiarity: Some(-1.0), confidence: 0.0, ..options() };
        assert_eq!(start(Some(&folder), true, routes(), bold).0, 0);
        // Everything else is.
        let mut fewer = routes();
        fewer[1].examples.pop();
        assert!(start(Some(&folder), true, fewer, options()).0 > 0);
        let mut renamed = routes();
        renamed[0].answer.push('s');
        assert!(start(Some(&folder), true, renamed, options()).0 > 0);
        assert!(start(Some(&folder), false, routes(), options()).0 > 0);
        // A damaged file is measured again.
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        assert_eq!(again(), first);
        assert_eq!(again().0, 0);
    }
}

#[test]
fn routing_leaves_everybodys_conversation_alone() {
    let engine = engine();
    let options = GenerationOptions { max_tokens: Some(8), ..GenerationOptions::default() };
    let talk = |session: &mut Session, prompt: &str| {
        let response = session.respond(prompt, &options).unwrap().collect().unwrap();
        (response.tokens, response.usage.cached_tokens)
    };
    let (mut undisturbed, mut other) = (plain(&engine), plain(&engine));
    let first = talk(&mut undisturbed, "say again: the sea");
    assert_eq!(talk(&mut other, "say again: the sea"), first);
    let mut session = trained(&engine);
    let router = new(&mut session, routes(), RouterOptions::default()).unwrap();
    let once = ask(&router, &mut session, REQUESTS[6].0);
    for (request, _) in REQUESTS {
        ask(&router, &mut session, request);
    }
    assert_eq!(ask(&router, &mut session, REQUESTS[6].0), once, "whatever came between");
    assert!(session.tokens().is_empty() && session.messages().is_empty());
    assert_eq!(talk(&mut other, "and again"), talk(&mut undisturbed, "and again"));
}

/// Without training a tiny model knows little, but what is asked is what is counted.
#[test]
fn descriptions_count_by_how_much_the_request_makes_them_likelier() {
    let engine = engine();
    let mut session = plain(&engine);
    let route =
        |name: &str, answer: &str| Route { name: name.into(), answer: answer.into(), examples: Vec::new() };
    let routes =
        vec![route("film", "a film review"), route("long", "a very long and unlikely description of it")];
    let asks = |session: &mut Session, calibrate, request: &str| {
        let options = RouterOptions { calibrate, ..RouterOptions::for_descriptions() };
        let router = new(session, routes.clone(), options).unwrap();
        ask(&router, session, request).ranking
    };
    // A text that says nothing makes no description likelier.
    let shares = |ranking: &[(usize, f64)]| {
        let mut shares = [0.0; 2];
        ranking.iter().for_each(|(route, share)| shares[*route] = *share);
        shares
    };
    let raw = shares(&asks(&mut session, false, "..."));
    let calibrated = shares(&asks(&mut session, true, "..."));
    assert!(raw[0] > 0.99, "the short one is likelier by itself: {raw:?}");
    assert!(calibrated[1] > 0.05, "which is taken out: {calibrated:?}");
    // Every call computes the same.
    assert_eq!(asks(&mut session, true, "a film"), asks(&mut session, true, "a film"));
}

#[test]
fn a_file_of_routes_says_what_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.json");
    assert!(matches!(read_routes(&file), Err(Error::Io { .. })));
    for text in ["", "{}", "[1]", r#"[{"name": "a"}]"#, r#"[{"name": "a", "answer": "b", "examples": [1]}]"#]
    {
        std::fs::write(&file, text).unwrap();
        assert!(matches!(read_routes(&file), Err(Error::Malformed { .. })), "{text}");
    }
    std::fs::write(&file, r#"[{"name": "a", "answer": "b"}]"#).unwrap();
    let expected = Route { name: "a".into(), answer: "b".into(), examples: Vec::new() };
    assert_eq!(read_routes(&file).unwrap(), [expected]);
    assert!(routes().iter().all(|route| route.examples.len() > 30));
}
