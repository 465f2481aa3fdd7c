//! What lives on the device as long as somebody holds it: KV caches and resident adapters.
//!
//! Invariant: an id of the device is dropped exactly once, when its last holder goes; one that went with a lost device is
//! never named again.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::seat::Placed;
use super::shared::Shared;
use super::slot::Slot;
use super::task::TaskDefaults;
use crate::adapter::{BoundTail, Canary, Tail};
use crate::device::TailId;
use crate::error::{Error, Result};

/// Adapters and the bits of their scales, in order: two lists compute the same if this is the same. Empty where nothing is
/// attached, and where all is scaled to 0, which is the same.
pub(crate) type AdapterKey = Vec<(u64, u32)>;

/// Adapters with their scales, in order.
#[derive(Debug, Default)]
pub(crate) struct AdapterList {
    pub(crate) key: AdapterKey,
    pub(crate) items: Vec<(BoundAdapter, f32)>,
    /// Those of the items.
    pub(crate) scales: Vec<f32>,
}

impl AdapterList {
    /// Refuses scales that are not finite.
    pub(crate) fn new(items: Vec<(BoundAdapter, f32)>) -> Result<Self> {
        if let Some((adapter, scale)) = items.iter().find(|(_, scale)| !scale.is_finite()) {
            let option = format!("scale of adapter {}", adapter.name());
            return Err(Error::option(&option, scale, "must be a finite number"));
        }
        let key = match items.iter().all(|(_, scale)| *scale == 0.0) {
            true => Vec::new(),
            // 0 has two signs.
            false => items.iter().map(|(adapter, scale)| (adapter.id(), (scale + 0.0).to_bits())).collect(),
        };
        let scales = items.iter().map(|(_, scale)| *scale).collect();
        Ok(Self { key, items, scales })
    }
}

impl PartialEq for AdapterList {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// Whether a list is of what is attached.
pub(super) fn is(list: &AdapterList, adapters: Option<&ResidentAdapter>) -> bool {
    adapters.map_or(list.key.is_empty(), |resident| *resident.list == *list)
}

/// The list of what is attached; an empty one for nothing.
pub(super) fn list(adapters: Option<&ResidentAdapter>) -> Arc<AdapterList> {
    adapters.map(|resident| resident.list.clone()).unwrap_or_default()
}

/// A task adapter whose branches are known to fit this engine's model. Cheap to clone; its tensors stay in their file.
#[derive(Clone, Debug)]
pub struct BoundAdapter(Arc<Bound>);

#[derive(Debug)]
struct Bound {
    name: String,
    id: u64,
    tail: BoundTail,
    task: TaskDefaults,
    digest: OnceLock<[u8; 32]>,
    canary: Option<Canary>,
}

impl BoundAdapter {
    /// Names a tail; every call gives an adapter of its own, even for equal tails.
    pub(crate) fn new(name: String, tail: BoundTail, task: TaskDefaults, canary: Option<Canary>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Bound { name, id, tail, task, digest: OnceLock::new(), canary }))
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The branches; those of a file are made for the caller.
    pub fn tail(&self) -> Cow<'_, Tail> {
        self.0.tail.tail()
    }

    /// Bytes of the branches in their file.
    pub fn byte_len(&self) -> usize {
        self.0.tail.byte_len()
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
            None => self.tail().digest().map(|digest| *self.0.digest.get_or_init(|| digest)),
        }
    }
}

/// Adapters on the device, and how strongly each acts; the last clone that goes frees them.
///
/// Scales are no part of what lies on the device: the same adapters with other scales are the same bytes.
#[derive(Clone, Debug)]
pub struct ResidentAdapter {
    pub(super) resident: Arc<Resident>,
    pub(super) list: Arc<AdapterList>,
}

impl ResidentAdapter {
    /// The adapters and their scales.
    pub fn adapters(&self) -> &[(BoundAdapter, f32)] {
        &self.list.items
    }

    /// The same adapters with other scales, one for each in their order; places nothing.
    pub(crate) fn scaled(&self, scales: &[f32]) -> Result<Self> {
        let items = &self.list.items;
        if scales.len() != items.len() {
            return Err(unfit_scales(scales.len(), items.len()));
        }
        let items = items.iter().zip(scales).map(|((adapter, _), scale)| (adapter.clone(), *scale)).collect();
        Ok(Self { resident: self.resident.clone(), list: Arc::new(AdapterList::new(items)?) })
    }

    /// Whether any of them does anything.
    pub(super) fn acts(&self) -> bool {
        !self.list.key.is_empty()
    }

    /// Where the branches lie, unless another thread is loading them just now; their device may be lost.
    pub(super) fn placed(&self) -> Option<Placed<TailId>> {
        self.resident.tail.try_lock().ok().map(|tail| *tail)
    }

    /// What a pass is given, nothing where all is scaled to 0: where the branches lie, loaded again if their device was
    /// lost, and their scales.
    pub(super) fn acting(&self) -> Result<Option<(Placed<TailId>, &[f32])>> {
        match self.acts() {
            true => Ok(Some((self.resident.tail()?, &self.list.scales))),
            false => Ok(None),
        }
    }
}

/// That a request has not as many scales as its session has adapters.
pub(super) fn unfit_scales(scales: usize, adapters: usize) -> Error {
    let reason = format!("{adapters} adapters are attached; give one scale for each, in their order");
    Error::option("adapter_scales", format!("({scales} scales)"), reason)
}

/// Adapters on the device as one tail.
#[derive(Debug)]
pub(crate) struct Resident {
    shared: Arc<Shared>,
    tail: Mutex<Placed<TailId>>,
    adapters: Vec<BoundAdapter>,
    bytes: u64,
}

impl Resident {
    pub(crate) fn load(shared: &Arc<Shared>, adapters: Vec<BoundAdapter>) -> Result<Self> {
        let (tail, bytes) = place(shared, &adapters)?;
        Ok(Self { shared: shared.clone(), tail: Mutex::new(tail), adapters, bytes })
    }

    pub(crate) fn adapters(&self) -> &[BoundAdapter] {
        &self.adapters
    }

    /// Bytes of the branches on the device, at most.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn tail(&self) -> Result<Placed<TailId>> {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.epoch != self.shared.epoch() {
            *tail = place(&self.shared, &self.adapters)?.0;
        }
        Ok(*tail)
    }
}

/// Loads adapters as one tail; the bytes that it takes, at most.
fn place(shared: &Shared, adapters: &[BoundAdapter]) -> Result<(Placed<TailId>, u64)> {
    // Copied before the device's lock is taken: reading a file may take long.
    let tails: Vec<Tail> = adapters.iter().map(|a| a.tail().into_owned().copied()).collect::<Result<_>>()?;
    let tails: Vec<&Tail> = tails.iter().collect();
    let placed = shared.place(|device| Ok((device.load_tails(&tails)?, device.tail_bytes(&tails))))?;
    let ((id, bytes), epoch) = (placed.id, placed.epoch);
    Ok((Placed { id, epoch }, bytes))
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
