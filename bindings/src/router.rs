//! Which task a request is for, as apps ask it. The router has a session of its own.

use std::sync::Arc;

use calora::router as core;

use crate::error::Result;
use crate::options::{ScaledAdapter, SessionConfig};
use crate::session::Cell;

/// A task that requests may be for.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Route {
    /// What the app calls it.
    pub name: String,
    /// What the model answers to such a request: a trained label, or a description.
    pub answer: String,
    /// Requests of this kind.
    #[uniffi(default = [])]
    pub examples: Vec<String>,
}

/// How a router asks and when it admits that it does not know.
#[derive(Clone, uniffi::Record)]
pub struct RouterConfig {
    /// The tasks.
    pub routes: Vec<Route>,
    /// What was trained to give the answers; without it the answers are descriptions.
    #[uniffi(default = [])]
    pub adapters: Vec<ScaledAdapter>,
    /// The user's message, in which `{request}` stands for the request.
    #[uniffi(default = None)]
    pub prompt: Option<String>,
    /// The least probability of the likeliest route, from 0 to 1.
    #[uniffi(default = 0.6)]
    pub confidence: f64,
    /// The least familiarity, from -1 to 1; by default measured on the examples.
    #[uniffi(default = None)]
    pub familiarity: Option<f64>,
}

impl RouterConfig {
    pub(crate) fn session(&self) -> SessionConfig {
        SessionConfig { adapters: self.adapters.clone(), ..SessionConfig::default() }
    }

    pub(crate) fn begin(self) -> Result<core::Router> {
        let trained = !self.adapters.is_empty();
        let usual =
            if trained { core::RouterOptions::default() } else { core::RouterOptions::for_descriptions() };
        let options = core::RouterOptions {
            prompt: self.prompt.or(usual.prompt),
            calibrate: usual.calibrate,
            confidence: self.confidence,
            familiarity: self.familiarity,
        };
        let route = |Route { name, answer, examples }| core::Route { name, answer, examples };
        Ok(core::Router::begin(self.routes.into_iter().map(route).collect(), options)?)
    }
}

/// Why a router does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Doubt {
    /// There is no request.
    Empty,
    /// No route is likely enough.
    Unsure,
    /// The request is like none of the examples.
    Unfamiliar,
}

/// A route and how likely it is.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct RankedRoute {
    /// The route's name.
    pub name: String,
    /// From 0 to 1; all add up to 1.
    pub probability: f64,
}

/// What a router says of a request.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Routing {
    /// The route to take; absent: "I don't know".
    pub route: Option<String>,
    /// All routes, the likeliest first.
    pub ranking: Vec<RankedRoute>,
    /// How near the request comes to the nearest example, from -1 to 1.
    pub familiarity: Option<f64>,
    /// Why the likeliest route is not to be taken.
    pub doubt: Option<Doubt>,
}

/// Picks the task for a request; dropping it closes it.
#[derive(uniffi::Object)]
pub struct Router {
    cell: Arc<Cell>,
    router: Arc<core::Router>,
}

impl Router {
    /// Measures what is to be measured, a text at a time, so that other sessions have their turns.
    pub(crate) async fn measured(cell: Arc<Cell>, mut router: core::Router) -> Result<Arc<Self>> {
        loop {
            let (next, more) = cell
                .run(move |session| {
                    let more = router.measure(session)?;
                    Ok((router, more))
                })
                .await?;
            if !more {
                return Ok(Arc::new(Self { cell, router: Arc::new(next) }));
            }
            router = next;
        }
    }
}

#[uniffi::export]
impl Router {
    /// Which task a request is for.
    pub async fn route(&self, request: String) -> Result<Routing> {
        let (asked, judge) = (self.router.clone(), self.router.clone());
        let begin = move |session: &mut calora::session::Session| asked.begin_route(session, &request);
        let routing =
            self.cell.run_passes(begin, move |asking, session| asking.pass(&judge, session)).await?;
        let name = |route: usize| self.router.routes()[route].name.clone();
        Ok(Routing {
            route: routing.route().map(name),
            familiarity: routing.familiarity,
            doubt: routing.doubt.map(|doubt| match doubt {
                core::Doubt::Empty => Doubt::Empty,
                core::Doubt::Unsure => Doubt::Unsure,
                core::Doubt::Unfamiliar => Doubt::Unfamiliar,
            }),
            ranking: routing
                .ranking
                .iter()
                .map(|(route, probability)| RankedRoute { name: name(*route), probability: *probability })
                .collect(),
        })
    }

    /// The familiarity below which it does not know; absent without examples.
    pub fn least_familiarity(&self) -> Option<f64> {
        self.router.least_familiarity()
    }

    /// Frees its cache; every later call fails with `Closed`. Twice is fine.
    pub fn close(&self) {
        self.cell.close();
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.cell.close();
    }
}

/// Reads routes from a JSON file beside an adapter.
#[uniffi::export]
pub fn read_routes(path: String) -> Result<Vec<Route>> {
    let route = |core::Route { name, answer, examples }| Route { name, answer, examples };
    Ok(core::read_routes(path)?.into_iter().map(route).collect())
}
