//! What lives on the device as long as somebody holds it: KV caches and resident adapters.
//!
//! Invariant: an id of the device is dropped exactly once, when its last holder goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::shared::Shared;
use super::task::TaskDefaults;
use crate::adapter::Tail;
use crate::device::{CacheId, TailId};
use crate::error::Result;

/// Adapters and the bits of their scales, in order: two lists compute the same if this is the same.
pub(crate) type AdapterKey = Vec<(u64, u32)>;

/// A task adapter whose branches are known to fit this engine's model. Cheap to clone; its tensors stay in their file.
#[derive(Clone, Debug)]
pub struct BoundAdapter(Arc<Bound>);

#[derive(Debug)]
struct Bound {
    name: String,
    id: u64,
    tail: Tail,
    task: TaskDefaults,
}

impl BoundAdapter {
    /// Names a tail; every call gives an adapter of its own, even for equal tails.
    pub(crate) fn new(name: String, tail: Tail, task: TaskDefaults) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Bound { name, id: NEXT.fetch_add(1, Ordering::Relaxed), tail, task }))
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The branches.
    pub fn tail(&self) -> &Tail {
        &self.0.tail
    }

    /// What the task brings besides its branches.
    pub fn task(&self) -> &TaskDefaults {
        &self.0.task
    }

    /// Whether it is the same one, and not only of the same name or content.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }
}

/// A list of adapters on the device; the last clone that goes frees it.
#[derive(Clone, Debug)]
pub struct ResidentAdapter(pub(crate) Arc<Resident>);

impl ResidentAdapter {
    /// The adapters and their scales.
    pub fn adapters(&self) -> &[(BoundAdapter, f32)] {
        &self.0.adapters
    }

    /// Bytes of the branches in their files, close to what they take on a device.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes
    }

    pub(crate) fn tail(&self) -> TailId {
        self.0.tail
    }

    pub(crate) fn key(&self) -> Arc<AdapterKey> {
        self.0.key.clone()
    }
}

#[derive(Debug)]
pub(crate) struct Resident {
    shared: Arc<Shared>,
    tail: TailId,
    key: Arc<AdapterKey>,
    adapters: Vec<(BoundAdapter, f32)>,
    bytes: u64,
}

impl Resident {
    pub(crate) fn adapters(&self) -> &[(BoundAdapter, f32)] {
        &self.adapters
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn load(
        shared: &Arc<Shared>,
        adapters: &[(BoundAdapter, f32)],
        key: Arc<AdapterKey>,
    ) -> Result<Self> {
        let parts: Vec<(&Tail, f32)> = adapters.iter().map(|(a, scale)| (a.tail(), *scale)).collect();
        // Copied before the device's lock is taken: reading a file may take long.
        let copied = Tail::stack(&parts).copied()?;
        let tail = shared.device().load_tail(&copied)?;
        let bytes = adapters.iter().map(|(adapter, _)| adapter.tail().byte_len() as u64).sum();
        Ok(Self { shared: shared.clone(), tail, key, adapters: adapters.to_vec(), bytes })
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.shared.device().drop_tail(self.tail);
    }
}

/// A KV cache on the device.
#[derive(Debug)]
pub(super) struct CacheHandle {
    shared: Arc<Shared>,
    id: CacheId,
}

impl CacheHandle {
    pub(super) fn new(shared: &Arc<Shared>, positions: usize) -> Result<Self> {
        let id = shared.device().create_cache(positions)?;
        Ok(Self { shared: shared.clone(), id })
    }

    pub(super) fn id(&self) -> CacheId {
        self.id
    }
}

impl Drop for CacheHandle {
    fn drop(&mut self) {
        self.shared.device().drop_cache(self.id);
    }
}
