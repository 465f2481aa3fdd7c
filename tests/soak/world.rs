//! What the workers share: an engine on a device that fails as told, a folder of adapters, and the model of both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use calora::adapter::{AdapterInfo, BranchStorage, write_task_file};
use calora::device::Model;
use calora::engine::{Engine, EngineParts, Recovery};
use calora::library::AdapterLibrary;
use calora::session::{CancelHandle, SessionOptions};
use calora::text::{ChatTemplate, Tokenizer, TokenizerConfig};
use calora::weights::DType;

use crate::common::{Store, random_model, random_tail, small_config};
use crate::device::{EOS, TEMPLATE, VOCAB, tokenizer_json};
use crate::faulty::{CHUNK, Plan, Shared, failing_cpu, failing_gpu};
use crate::history::History;
use crate::reference::Reference;
use crate::talk::Talk;

/// Names in the folder.
pub const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
/// Task files to put there; the number is a file's name inside.
pub const CONTENTS: usize = 6;
/// Bytes of put-aside beginnings: a few conversations.
pub const PREFIX_BUDGET: u64 = 300_000;

/// Which device computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Cpu,
    Gpu,
}

/// What happened, for the last line and for checks that it did happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    Answers,
    Inexact,
    Cancelled,
    Excused,
    Reused,
    Missing,
    Conflicts,
    Swaps,
    Replaced,
    Losses,
}

const SEEN: [Seen; 10] = [
    Seen::Answers,
    Seen::Inexact,
    Seen::Cancelled,
    Seen::Excused,
    Seen::Reused,
    Seen::Missing,
    Seen::Conflicts,
    Seen::Swaps,
    Seen::Replaced,
    Seen::Losses,
];

pub struct World {
    pub engine: Engine,
    pub library: AdapterLibrary,
    pub reference: Reference,
    pub history: History,
    pub plan: Shared,
    /// Sessions that no thread uses at the moment.
    pub pool: Mutex<Vec<Talk>>,
    /// Of the response that each thread draws, or drew last.
    pub cancels: Vec<Mutex<CancelHandle>>,
    /// Versions that somebody has replaced, by name: nobody can again.
    pub replaced: Mutex<std::collections::HashSet<(usize, String)>>,
    /// Task files by content.
    pub sources: Vec<PathBuf>,
    pub folder: PathBuf,
    seen: [AtomicU64; SEEN.len()],
    /// Removed last.
    home: tempfile::TempDir,
}

impl World {
    pub fn new(kind: Kind, threads: usize) -> Self {
        let mut config = small_config();
        config["vocab_size"] = VOCAB.into();
        let model = random_model(&config, Store::F32, 3);
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("adapters");
        std::fs::create_dir(&folder).unwrap();
        let sources: Vec<_> = (0..CONTENTS).map(|n| home.path().join(format!("{n}.safetensors"))).collect();
        for (n, path) in sources.iter().enumerate() {
            write(&model, n, path);
        }

        let quiet = Shared::default();
        let engine =
            |plan: &Shared, adapters: u64, prefixes: u64| make(kind, &model, plan, adapters, prefixes);
        let undisturbed = engine(&quiet, 0, 0);
        let adapters: Vec<_> = sources.iter().map(|path| undisturbed.open_adapter(path).unwrap()).collect();
        let one = adapters[0].tail().byte_len() as u64;
        let reference = Reference::new(undisturbed, adapters);

        let plan: Shared = Arc::new(Mutex::new(Plan::default()));
        let engine = engine(&plan, one * 5 / 2, PREFIX_BUDGET);
        let library = AdapterLibrary::open(&engine, &folder).unwrap();
        let cancels = (0..threads).map(|_| Mutex::default()).collect();
        let (seen, history) = (Default::default(), History::default());
        let (pool, replaced) = (Mutex::default(), Mutex::default());
        Self {
            engine,
            library,
            reference,
            history,
            plan,
            pool,
            cancels,
            replaced,
            sources,
            folder,
            seen,
            home,
        }
    }

    pub fn saw(&self, what: Seen) {
        self.seen[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> String {
        let count = |seen: &Seen| format!("{seen:?} {}", self.seen[*seen as usize].load(Ordering::Relaxed));
        SEEN.iter().map(count).collect::<Vec<_>>().join(", ")
    }

    /// Bytes of weights, caches and adapters; working memory grows to what the largest pass needs and stays.
    pub fn held(&self) -> [u64; 3] {
        let memory = self.engine.memory();
        [memory.weights, memory.caches, memory.tails]
    }

    /// Lets go of everything that somebody may hold for later, on a device that is there.
    pub fn rest(&self) {
        self.pool.lock().unwrap().clear();
        self.replaced.lock().unwrap().clear();
        self.reference.forget();
        self.library.release();
        self.engine.evict_idle();
        self.plan.lock().unwrap().faults.clear();
        let mut session = self.engine.session(SessionOptions::default()).unwrap();
        session.visit_logits(&[1], 0, |_, _| {}).unwrap();
        drop(session);
        self.engine.evict_idle();
        self.engine.forget_prefixes();
    }

    /// Lets go of the folder; where it was.
    pub fn forget_library(self) -> PathBuf {
        let Self { library, engine, folder, home, .. } = self;
        drop((library, engine));
        drop(home);
        folder
    }
}

/// A task file whose name inside tells its content; every second task has instructions.
fn write(model: &Model, content: usize, path: &Path) {
    let tail = random_tail(&model.recipe, 2 + content % 3, 1, DType::F32, 10 + content as u64);
    let names = model.recipe.linears.iter().map(|linear| linear.path.clone());
    let modules: BTreeMap<_, _> = names.zip(tail.branches).collect();
    let system_prompt = (content % 2 == 1).then(|| format!("this is task {content} of them all"));
    let info = AdapterInfo { name: content.to_string(), system_prompt, ..AdapterInfo::default() };
    write_task_file(path, &info, None, &modules, BranchStorage::F16).unwrap();
}

fn make(kind: Kind, model: &Model, plan: &Shared, adapter_budget: u64, prefix_budget: u64) -> Engine {
    let mut again = match kind {
        Kind::Cpu => failing_cpu(model, plan),
        Kind::Gpu => failing_gpu(model, plan),
    };
    let tokenizer_config = TokenizerConfig {
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        add_bos_token: None,
        chat_template: Some(ChatTemplate::new(TEMPLATE).unwrap()),
    };
    let tokenizer =
        Tokenizer::from_bytes(tokenizer_json().as_bytes(), &tokenizer_config, "tokenizer.json").unwrap();
    Engine::from_parts(EngineParts {
        model: model.clone(),
        device: again().unwrap(),
        recovery: Some(Recovery { again, cpu: None }),
        folder: "test".into(),
        files: None,
        scheme: "none".into(),
        tokenizer: Some(tokenizer),
        tokenizer_config,
        config: serde_json::Value::Null,
        generation_config: serde_json::json!({"eos_token_id": EOS}),
        context_size: Some(240),
        prefill_chunk: Some(CHUNK),
        adapter_budget: Some(adapter_budget),
        prefix_budget: Some(prefix_budget),
        prefix_folder: None,
    })
    .unwrap()
}
