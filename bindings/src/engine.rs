//! The engine: base weights on a device, shared by sessions and adapters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use calora::engine::ResidentAdapter;

use crate::adapter::{AdapterOpenOptions, TaskAdapter};
use crate::bench::{BenchmarkOptions, SwapBenchmarkOptions};
use crate::config::{EngineConfig, LoadProgress, forward};
use crate::error::{EngineError, Result};
use crate::event::{EventStream, Hub};
use crate::info::{DeviceInfo, MemoryUse, ModelInfo, Residency, Statistics};
use crate::library::{AdapterLibrary, SharedLibrary};
use crate::memory::{MemoryPlan, MemoryPressure, TrimReport};
use crate::options::SessionConfig;
use crate::router::{Router, RouterConfig};
use crate::session::{Cell, Session, options};
use crate::worker::Worker;

/// What sessions, streams and the engine object share.
pub(crate) struct Core {
    pub(crate) worker: Worker,
    events: Arc<Hub>,
    engine: Mutex<Option<calora::engine::Engine>>,
    /// Adapters that the app wants resident, by address of their object.
    preloaded: Mutex<HashMap<usize, ResidentAdapter>>,
    sessions: Mutex<Vec<Weak<Cell>>>,
    libraries: Mutex<Vec<Weak<SharedLibrary>>>,
    closed: AtomicBool,
}

impl Core {
    pub(crate) fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(EngineError::closed("engine")) } else { Ok(()) }
    }

    pub(crate) fn engine(&self) -> Result<calora::engine::Engine> {
        self.check()?;
        lock(&self.engine).clone().ok_or_else(|| EngineError::closed("engine"))
    }

    fn cells(&self) -> Vec<Arc<Cell>> {
        let mut sessions = lock(&self.sessions);
        sessions.retain(|cell| cell.strong_count() > 0);
        sessions.iter().filter_map(Weak::upgrade).collect()
    }

    fn libraries(&self) -> Vec<Arc<SharedLibrary>> {
        let mut libraries = lock(&self.libraries);
        libraries.retain(|library| library.strong_count() > 0);
        libraries.iter().filter_map(Weak::upgrade).collect()
    }

    fn close(self: &Arc<Self>) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        for cell in self.cells() {
            cell.close();
        }
        self.events.close();
        let core = self.clone();
        // Device memory is freed on the thread that used it, after everything that was queued.
        self.worker.close(move || {
            lock(&core.preloaded).clear();
            for library in core.libraries() {
                lock(&library).take();
            }
            lock(&core.engine).take();
        });
    }

    fn trim(&self, level: MemoryPressure) -> Result<TrimReport> {
        let engine = self.engine()?;
        lock(&self.preloaded).clear();
        for library in self.libraries() {
            if let Some(library) = lock(&library).as_ref() {
                library.release();
            }
        }
        Ok(engine.trim(level.into()).into())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says so when the caller of a load is gone.
struct Abandoned(Arc<AtomicBool>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Base weights on a device. Heavy: one for each model, shared by everything; dropping it closes it.
#[derive(uniffi::Object)]
pub struct Engine {
    core: Arc<Core>,
    model: ModelInfo,
    /// Of the load.
    device: DeviceInfo,
    plan: MemoryPlan,
}

#[uniffi::export]
impl Engine {
    /// Loads a model folder on the engine's thread. A caller that goes away, or a callback that throws, stops it.
    #[uniffi::constructor]
    pub async fn load(config: EngineConfig, progress: Option<Arc<dyn LoadProgress>>) -> Result<Arc<Self>> {
        let worker = Worker::start()?;
        let stopped = Arc::new(AtomicBool::new(false));
        let guard = Abandoned(stopped.clone());
        let loaded = worker
            .run(move || {
                let mut refused = None;
                let stopped = || stopped.load(Ordering::Acquire);
                let engine =
                    calora::engine::Engine::load_with_progress(&config.model, config.options(), |state| {
                        forward(progress.as_deref(), &stopped, &mut refused, state.into())
                    });
                match refused {
                    Some(error) => Err(error),
                    None => Ok(engine?),
                }
            })
            .await;
        drop(guard);
        let engine = loaded?;
        let (model, device) = (engine.model_info().into(), (&*engine.device_info()).into());
        let plan = engine.memory_plan().cloned().unwrap_or_default();
        let plan = MemoryPlan::new(&plan, None);
        let core = Core {
            worker,
            events: Hub::new(&engine),
            engine: Mutex::new(Some(engine)),
            preloaded: Mutex::default(),
            sessions: Mutex::default(),
            libraries: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        Ok(Arc::new(Self { core: Arc::new(core), model, device, plan }))
    }

    /// What the model is.
    pub fn model_info(&self) -> ModelInfo {
        self.model.clone()
    }

    /// What computes now; for a closed engine, what it was loaded on.
    pub fn device_info(&self) -> DeviceInfo {
        match self.core.engine() {
            Ok(engine) => (&*engine.device_info()).into(),
            Err(_) => self.device.clone(),
        }
    }

    /// What happens to the device from now on.
    pub fn events(&self) -> Arc<EventStream> {
        Arc::new(self.core.events.subscribe())
    }

    /// Gives the device up as if the system had taken it, also while paused: for tests of an app. The next use makes it
    /// again.
    pub fn simulate_device_loss(&self) -> Result<()> {
        Ok(self.core.engine()?.simulate_device_loss()?)
    }

    /// Bytes held now; waits for the pass in progress. None on the device between a loss and the next use.
    pub async fn memory(&self) -> Result<MemoryUse> {
        let engine = self.core.engine()?;
        self.core.worker.run(move || Ok(MemoryUse::of(&engine))).await
    }

    /// What loading planned, with the context and the budgets that it settled for.
    pub fn memory_plan(&self) -> MemoryPlan {
        self.plan.clone()
    }

    /// What was computed since the engine was loaded.
    pub fn statistics(&self) -> Result<Statistics> {
        let counted = self.core.engine()?.counters();
        Ok(Statistics { passes: counted.passes, tokens: counted.tokens })
    }

    /// Maps a task file or PEFT folder and checks that it belongs to this model; its tensors stay in the file.
    pub async fn open_adapter(&self, path: String) -> Result<Arc<TaskAdapter>> {
        self.open_adapter_with(path, AdapterOpenOptions::default()).await
    }

    /// The same for an encrypted adapter, or with questions about it: its signer, its canary. An encrypted one is decrypted
    /// into memory, which is overwritten once nobody uses it.
    pub async fn open_adapter_with(
        &self,
        path: String,
        options: AdapterOpenOptions,
    ) -> Result<Arc<TaskAdapter>> {
        let options = options.take()?;
        let engine = self.core.engine()?;
        self.core.worker.run(move || Ok(Arc::new(TaskAdapter::open(&engine, &path, &options)?))).await
    }

    /// Makes an adapter resident and keeps it so, whatever the budget: attaching it then moves no bytes.
    pub async fn preload(&self, adapter: Arc<TaskAdapter>) -> Result<()> {
        let (engine, core) = (self.core.engine()?, self.core.clone());
        self.core
            .worker
            .run(move || {
                if let Some(resident) = engine.resident(&[(adapter.bound()?, 1.0)])? {
                    lock(&core.preloaded).insert(Arc::as_ptr(&adapter) as usize, resident);
                }
                Ok(())
            })
            .await
    }

    /// Lets go of a resident adapter; it stays where a session uses it.
    pub async fn evict(&self, adapter: Arc<TaskAdapter>) -> Result<()> {
        let (engine, core) = (self.core.engine()?, self.core.clone());
        self.core
            .worker
            .run(move || {
                lock(&core.preloaded).remove(&(Arc::as_ptr(&adapter) as usize));
                engine.evict(&adapter.bound()?);
                Ok(())
            })
            .await
    }

    /// Opens a folder of adapters: headers are read only, unless the options ask for more.
    pub async fn adapter_library(
        &self,
        directory: String,
        options: AdapterOpenOptions,
    ) -> Result<Arc<AdapterLibrary>> {
        let options = options.take()?;
        let (engine, core) = (self.core.engine()?, self.core.clone());
        self.core
            .worker
            .run(move || {
                let library = calora::library::AdapterLibrary::open_with(&engine, directory, options)?;
                let library = Arc::new(Mutex::new(Some(library)));
                lock(&core.libraries).push(Arc::downgrade(&library));
                Ok(Arc::new(AdapterLibrary::new(core.clone(), library)))
            })
            .await
    }

    /// Which adapters are on the device, and how full their budget is.
    pub async fn residency(&self) -> Result<Residency> {
        let engine = self.core.engine()?;
        self.core.worker.run(move || Ok(engine.residency().into())).await
    }

    /// What the GPU's self-test found, one JSON object; none without `device_folder`, on the CPU, and between a loss and the
    /// next use.
    pub async fn device_report(&self) -> Result<Option<String>> {
        let engine = self.core.engine()?;
        self.core.worker.run(move || Ok(engine.device_facts().map(|facts| facts.to_json().to_string()))).await
    }

    /// A new conversation.
    pub async fn session(&self, config: SessionConfig) -> Result<Arc<Session>> {
        Ok(Arc::new(Session { cell: self.cell(&config).await? }))
    }

    /// Something that picks the task for a request. Measures its examples, a pass each; other sessions go on meanwhile.
    pub async fn router(&self, config: RouterConfig) -> Result<Arc<Router>> {
        let cell = self.cell(&config.session()).await?;
        Router::measured(cell, config.begin()?).await
    }

    /// How many tokens a text has.
    pub fn count_tokens(&self, text: String) -> Result<u32> {
        Ok(self.core.engine()?.count_tokens(&text)? as u32)
    }

    /// Frees memory that is not in use.
    pub async fn trim(&self, level: MemoryPressure) -> Result<TrimReport> {
        self.core.check()?;
        let core = self.core.clone();
        self.core.worker.run(move || core.trim(level)).await
    }

    /// Stops using the device; resolves when it is idle. Requests wait, and go on after [`Self::resume`]. For apps that
    /// leave the foreground: iOS ends an app whose GPU work goes on in the background.
    pub async fn pause(&self) -> Result<()> {
        self.core.check()?;
        self.core.worker.gate.pause().await;
        Ok(())
    }

    /// Goes on after [`Self::pause`].
    pub fn resume(&self) -> Result<()> {
        self.core.check()?;
        self.core.worker.gate.resume();
        Ok(())
    }

    /// Measures speed, memory and what swapping costs, as one JSON object; the same as `calora bench --json`.
    pub async fn benchmark(&self, options: BenchmarkOptions) -> Result<String> {
        let engine = self.core.engine()?;
        self.core.worker.run(move || options.run(&engine)).await
    }

    /// Measures what many tasks over one model cost, as one JSON object; the same as `calora bench --swap --json`.
    pub async fn benchmark_swaps(&self, options: SwapBenchmarkOptions) -> Result<String> {
        let engine = self.core.engine()?;
        self.core.worker.run(move || options.run(&engine)).await
    }

    /// Ends all sessions and frees the device's memory once the pass in progress is over; every later call fails with
    /// `Closed`. Returns at once. Twice is fine.
    pub fn close(&self) {
        self.core.close();
    }
}

impl Engine {
    /// A session's two halves.
    async fn cell(&self, config: &SessionConfig) -> Result<Arc<Cell>> {
        let (engine, core) = (self.core.engine()?, self.core.clone());
        let (options, priority) = (options(config)?, config.priority.unwrap_or_default());
        self.core
            .worker
            .run(move || {
                let cell = Arc::new(Cell::new(core.clone(), engine.session(options)?, priority));
                lock(&core.sessions).push(Arc::downgrade(&cell));
                Ok(cell)
            })
            .await
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.core.close();
    }
}
