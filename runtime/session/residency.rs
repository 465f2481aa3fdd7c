//! Which adapters are on the device: those in use, and those used lately within a budget of bytes.
//!
//! Invariant: one in use never goes; what is kept beyond its use never exceeds the budget. Sessions hold this, and what it
//! keeps holds [`Shared`], never the other way round: a circle would never be freed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::resident::{AdapterList, BoundAdapter, Resident, ResidentAdapter};
use super::shared::Shared;
use crate::error::Result;
use crate::weights::room;

/// Bytes of adapters that stay resident after their last use, unless told otherwise.
pub(crate) const DEFAULT_BUDGET: u64 = 64 << 20;

/// Adapters that are on the device together.
#[derive(Clone, Debug)]
pub struct ResidentList {
    /// The adapters.
    pub adapters: Vec<BoundAdapter>,
    /// Bytes of their branches on the device, at most.
    pub bytes: u64,
    /// How many sessions, and others that made them resident ahead of time, hold them; 0 where only the budget does.
    pub holders: usize,
}

/// What of an engine's adapters is on its device.
#[derive(Clone, Debug)]
pub struct ResidencyReport {
    /// Every list of adapters, in no order.
    pub lists: Vec<ResidentList>,
    /// Bytes that may stay after their last use.
    pub budget_bytes: u64,
    /// Bytes that are kept within the budget, in use or not.
    pub used_bytes: u64,
}

/// The adapters of one engine.
#[derive(Debug)]
pub(crate) struct Residency {
    shared: Arc<Shared>,
    budget: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Everything on the device by the ids of its adapters, whoever holds it and with whatever scales.
    known: HashMap<Vec<u64>, Weak<Resident>>,
    /// Held within the budget, the least recently used first.
    recent: VecDeque<Arc<Resident>>,
    /// Bytes of the last adapter that was loaded, where it is computed on as it lies in the copy of its file and no memory
    /// was given back since.
    loaded: Option<u64>,
}

impl Residency {
    pub(crate) fn new(shared: Arc<Shared>, budget: u64) -> Self {
        Self { shared, budget, state: Mutex::default() }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Makes a list of adapters resident as one tail, or finds it resident already; `None` for an empty list. Where there
    /// is no room, what is not in use makes room.
    pub(crate) fn get(&self, adapters: &[(BoundAdapter, f32)]) -> Result<Option<ResidentAdapter>> {
        self.place(|| self.find_or_load(adapters))
    }

    fn find_or_load(&self, adapters: &[(BoundAdapter, f32)]) -> Result<Option<ResidentAdapter>> {
        if adapters.is_empty() {
            return Ok(None);
        }
        let list = AdapterList::new(adapters.to_vec())?;
        let ids: Vec<u64> = adapters.iter().map(|(adapter, _)| adapter.id()).collect();
        let mut state = self.lock();
        let resident = match state.known.get(&ids).and_then(Weak::upgrade) {
            Some(resident) => resident,
            None => {
                state.known.retain(|_, resident| resident.strong_count() > 0);
                let adapters = adapters.iter().map(|(adapter, _)| adapter.clone()).collect();
                let resident = Arc::new(Resident::load(&self.shared, adapters)?);
                state.known.insert(ids, Arc::downgrade(&resident));
                // Several are several copies, and what was widened (int8) is memory of another size.
                state.loaded = match resident.adapters() {
                    [one] if one.byte_len() as u64 == resident.bytes() => Some(resident.bytes()),
                    _ => None,
                };
                resident
            }
        };
        let released = state.keep(&resident, self.budget);
        if !released.is_empty() {
            // The next one finds the memory of these.
            state.loaded = None;
            room::release();
        }
        // What is released waits for the device's lock; nobody else should wait for it meanwhile.
        drop(state);
        drop(released);
        Ok(Some(ResidentAdapter { resident, list: Arc::new(list) }))
    }

    /// Makes memory ready for an adapter like the last one that was loaded, where it would need new memory and the budget
    /// has room for it. For moments in which nobody waits; costs nothing where there is nothing to do.
    pub(crate) fn prepare_next(&self) {
        // Whoever holds the state is loading or evicting just now.
        let Ok(mut state) = self.state.try_lock() else { return };
        let Some(bytes) = state.loaded.take() else { return };
        let fits = state.recent.iter().map(|recent| recent.bytes()).sum::<u64>() + bytes <= self.budget;
        drop(state);
        // Other devices hold copies of their own, and that of the file went back to the allocator.
        if fits && self.shared.device_info().kind == "cpu" {
            // What of the file is not used may lie between what is.
            room::prepare(bytes + bytes / 32);
        }
    }

    /// Lets go of everything that holds one adapter and is not in use.
    pub(crate) fn evict(&self, adapter: &BoundAdapter) {
        let mut state = self.lock();
        let holds = |r: &Arc<Resident>| r.adapters().iter().any(|a| a.id() == adapter.id());
        let (gone, kept): (VecDeque<_>, VecDeque<_>) = state.recent.drain(..).partition(holds);
        state.recent = kept;
        state.loaded = None;
        drop(state);
        drop(gone);
    }

    /// Lets go of everything that is not in use; how many lists of adapters left the device.
    pub(crate) fn evict_idle(&self) -> usize {
        let mut state = self.lock();
        let recent = std::mem::take(&mut state.recent);
        state.loaded = None;
        drop(state);
        room::release();
        recent.iter().filter(|resident| Arc::strong_count(resident) == 1).count()
    }

    /// What is on the device now.
    pub(crate) fn report(&self) -> ResidencyReport {
        let state = self.lock();
        let known: Vec<Arc<Resident>> = state.known.values().filter_map(Weak::upgrade).collect();
        let lists = known
            .iter()
            .map(|resident| {
                let kept = state.recent.iter().any(|recent| Arc::ptr_eq(recent, resident));
                // This function's own, and the budget's.
                let holders = Arc::strong_count(resident).saturating_sub(1 + usize::from(kept));
                let adapters = resident.adapters().to_vec();
                ResidentList { adapters, bytes: resident.bytes(), holders }
            })
            .collect::<Vec<_>>();
        let used_bytes = state.recent.iter().map(|recent| recent.bytes()).sum();
        // The last holder may have gone meanwhile, and then this waits for the device's lock.
        drop(state);
        drop(known);
        ResidencyReport { lists, budget_bytes: self.budget, used_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Marks a list as the most recently used; gives back what no longer fits, to be dropped by the caller.
    fn keep(&mut self, resident: &Arc<Resident>, budget: u64) -> Vec<Arc<Resident>> {
        self.recent.retain(|kept| !Arc::ptr_eq(kept, resident));
        self.recent.push_back(resident.clone());
        let mut bytes: u64 = self.recent.iter().map(|recent| recent.bytes()).sum();
        let mut released = Vec::new();
        while bytes > budget
            && let Some(oldest) = self.recent.pop_front()
        {
            bytes -= oldest.bytes();
            released.push(oldest);
        }
        released
    }
}
