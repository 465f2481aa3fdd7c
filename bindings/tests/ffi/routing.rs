//! The router across the border.

use calora_ffi::{Doubt, Route, RouterConfig, read_routes};

use super::*;

fn routes() -> Vec<Route> {
    read_routes(root("models/adapters/router/routes.json")).unwrap()
}

fn config(adapters: Vec<ScaledAdapter>) -> RouterConfig {
    RouterConfig { routes: routes(), adapters, prompt: None, confidence: 0.6, familiarity: None }
}

#[test]
fn a_request_finds_its_task_and_what_is_none_does_not() {
    let engine = engine();
    let router = block_on(engine.router(config(with(&adapter(&engine, "router"))))).unwrap();
    for (request, task) in [(COMMAND, "intent"), (MESSAGE, "spam")] {
        let routing = block_on(router.route(request.into())).unwrap();
        assert_eq!(routing.route.as_deref(), Some(task));
        assert_eq!((routing.doubt, routing.ranking[0].name.as_str()), (None, task));
        let sum: f64 = routing.ranking.iter().map(|route| route.probability).sum();
        assert!((sum - 1.0).abs() < 1e-9 && routing.familiarity >= router.least_familiarity());
    }
    let nothing = block_on(router.route("hm".into())).unwrap();
    assert_eq!((nothing.route, nothing.doubt), (None, Some(Doubt::Unfamiliar)));
    assert_eq!(block_on(router.route(" ".into())).unwrap().doubt, Some(Doubt::Empty));
    router.close();
    router.close();
    assert!(matches!(block_on(router.route(COMMAND.into())), Err(EngineError::Closed { .. })));
}

#[test]
fn sessions_have_their_turns_while_a_router_measures() {
    let engine = engine();
    let (router, talk) = (adapter(&engine, "router"), session(&engine, Vec::new()));
    let before = engine.statistics().unwrap().passes;
    let measuring = {
        let engine = engine.clone();
        std::thread::spawn(move || block_on(engine.router(config(with(&router)))).unwrap())
    };
    while engine.statistics().unwrap().passes < before + 3 {
        std::thread::yield_now();
    }
    let options = GenerationOptions { max_tokens: Some(1), ..GenerationOptions::default() };
    let stream = talk.respond(STORY.into(), options).unwrap();
    while block_on(stream.next()).unwrap().is_some() {}
    let waited = engine.statistics().unwrap().passes - before;
    measuring.join().unwrap();
    let all = engine.statistics().unwrap().passes - before;
    assert!(waited < all, "the answer came after {waited} of {all} passes");
}

#[test]
fn what_cannot_route_is_refused() {
    let engine = engine();
    let with = |change: fn(&mut RouterConfig)| {
        let mut config = config(Vec::new());
        change(&mut config);
        block_on(engine.router(config)).err()
    };
    for refused in [
        with(|config| config.routes.truncate(1)),
        with(|config| config.confidence = 2.0),
        with(|config| config.prompt = Some("nothing to fill in".into())),
    ] {
        assert!(matches!(refused, Some(EngineError::InvalidOption { .. })), "{refused:?}");
    }
    assert!(matches!(read_routes(root("models/base/config.json")), Err(EngineError::InvalidFile { .. })));
    assert!(matches!(read_routes(root("nowhere.json")), Err(EngineError::FileNotFound { .. })));
}
