//! What lives on the device as long as somebody holds it: KV caches and resident adapters.
//!
//! Invariant: an id of the device is dropped exactly once, when its last holder goes; one that went with a lost device is
//! never named again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::seat::Placed;
use super::shared::Shared;
use super::slot::Slot;
use super::task::TaskDefaults;
use crate::adapter::{Canary, Tail};
use crate::device::TailId;
use crate::error::Result;

/// Adapters and the bits of their scales, in order: two lists compute the same if this is the same.
pub(crate) type AdapterKey = Vec<(u64, u32)>;

/// Adapters with their scales, in order.
#[derive(Debug, Default)]
pub(crate) struct AdapterList {
    pub(crate) key: AdapterKey,
    pub(crate) items: Vec<(BoundAdapter, f32)>,
}

impl AdapterList {
    pub(crate) fn new(items: &[(BoundAdapter, f32)]) -> Self {
        let key = items.iter().map(|(adapter, scale)| (adapter.id(), scale.to_bits())).collect();
        Self { key, items: items.to_vec() }
    }
}

impl PartialEq for AdapterList {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// Whether a list is of what is attached.
pub(super) fn is(list: &AdapterList, adapters: Option<&ResidentAdapter>) -> bool {
    adapters.map_or(list.key.is_empty(), |resident| *resident.0.list == *list)
}

/// The list of what is attached; an empty one for nothing.
pub(super) fn list(adapters: Option<&ResidentAdapter>) -> Arc<AdapterList> {
    adapters.map(|resident| resident.0.list.clone()).unwrap_or_default()
}

/// A task adapter whose branches are known to fit this engine's model. Cheap to clone; its tensors stay in their file.
#[derive(Clone, Debug)]
pub struct BoundAdapter(Arc<Bound>);

#[derive(Debug)]
struct Bound {
    name: String,
    id: u64,
    tail: Tail,
    task: TaskDefaults,
    digest: OnceLock<[u8; 32]>,
    canary: Option<Canary>,
}

impl BoundAdapter {
    /// Names a tail; every call gives an adapter of its own, even for equal tails.
    pub(crate) fn new(name: String, tail: Tail, task: TaskDefaults, canary: Option<Canary>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Bound { name, id, tail, task, digest: OnceLock::new(), canary }))
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

    /// What it was recorded to do, where its file says so.
    pub fn canary(&self) -> Option<&Canary> {
        self.0.canary.as_ref()
    }

    /// Whether it is the same one, and not only of the same name or content.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    /// Names the branches' content; reads them all, once.
    pub(crate) fn digest(&self) -> Result<[u8; 32]> {
        match self.0.digest.get() {
            Some(known) => Ok(*known),
            None => self.0.tail.digest().map(|digest| *self.0.digest.get_or_init(|| digest)),
        }
    }
}

/// A list of adapters on the device; the last clone that goes frees it.
#[derive(Clone, Debug)]
pub struct ResidentAdapter(pub(crate) Arc<Resident>);

impl ResidentAdapter {
    /// The adapters and their scales.
    pub fn adapters(&self) -> &[(BoundAdapter, f32)] {
        self.0.adapters()
    }

    /// Bytes of the branches on the device, at most.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// Where the branches lie, unless another thread is loading them just now; their device may be lost.
    pub(super) fn placed(&self) -> Option<Placed<TailId>> {
        self.0.tail.try_lock().ok().map(|tail| *tail)
    }

    /// Where the branches lie; loaded again if their device was lost.
    pub(crate) fn tail(&self) -> Result<Placed<TailId>> {
        let mut tail = self.0.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.epoch != self.0.shared.epoch() {
            *tail = place(&self.0.shared, &self.0.list.items)?;
        }
        Ok(*tail)
    }
}

#[derive(Debug)]
pub(crate) struct Resident {
    shared: Arc<Shared>,
    tail: Mutex<Placed<TailId>>,
    list: Arc<AdapterList>,
    bytes: u64,
}

impl Resident {
    pub(crate) fn load(shared: &Arc<Shared>, list: AdapterList) -> Result<Self> {
        let tail = Mutex::new(place(shared, &list.items)?);
        let bytes = shared.tail_bytes(&stack(&list.items))?;
        Ok(Self { shared: shared.clone(), tail, list: Arc::new(list), bytes })
    }

    pub(crate) fn adapters(&self) -> &[(BoundAdapter, f32)] {
        &self.list.items
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// All branches of the adapters, still in their files.
fn stack(adapters: &[(BoundAdapter, f32)]) -> Tail {
    let parts: Vec<(&Tail, f32)> = adapters.iter().map(|(a, scale)| (a.tail(), *scale)).collect();
    Tail::stack(&parts)
}

/// Stacks adapters and loads them.
fn place(shared: &Shared, adapters: &[(BoundAdapter, f32)]) -> Result<Placed<TailId>> {
    // Copied before the device's lock is taken: reading a file may take long.
    let tail = stack(adapters).copied()?;
    shared.place(|device| device.load_tail(&tail))
}

impl Drop for Resident {
    fn drop(&mut self) {
        let tail = *self.tail.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.shared.release(tail, |device, id| device.drop_tail(id));
    }
}

/// A KV cache on the device.
#[derive(Debug)]
pub(super) struct CacheHandle {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
}

impl CacheHandle {
    pub(super) fn new(shared: &Arc<Shared>, positions: usize) -> Result<Self> {
        let placed = shared.place(|device| device.create_cache(positions))?;
        Ok(Self { shared: shared.clone(), slot: shared.slots.add(placed) })
    }

    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Whether it is still there: neither lost with its device nor taken back.
    pub(super) fn is_current(&self) -> bool {
        self.slot.placed.epoch == self.shared.epoch() && !self.slot.is_gone()
    }
}

impl Drop for CacheHandle {
    fn drop(&mut self) {
        if let Some(mut gone) = self.slot.enter() {
            *gone = true;
            self.shared.release(self.slot.placed, |device, id| device.drop_cache(id));
        }
    }
}
