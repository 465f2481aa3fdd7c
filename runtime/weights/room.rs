//! Memory for the next checked copy, made ready when nobody waits.
//!
//! Most of what a copy into new memory costs is not the copying: the system gives a process its pages one by one, as they are
//! first written to, and clears each of them. An app that goes through its tasks asks for one such piece after the other, and
//! tasks of one library are of one size; so whoever makes copies may ask for a piece like the last one ahead of time.
//!
//! Invariant: at most one piece is kept for the whole process, whose allocator is one, too.

use std::collections::TryReserveError;
use std::sync::{Mutex, MutexGuard, PoisonError};

static ROOM: Mutex<Room> = Mutex::new(Room(Vec::new()));

/// A piece of memory that the system has given already: an empty buffer whose capacity was written to before.
struct Room(Vec<u8>);

impl Room {
    /// An empty buffer with room for `len` bytes: what is ready, if it fits and is not much too large, else a new one.
    fn take(&mut self, len: usize) -> Result<Vec<u8>, TryReserveError> {
        if self.0.capacity() >= len && self.0.capacity() / 2 <= len {
            return Ok(std::mem::take(&mut self.0));
        }
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len)?;
        Ok(buffer)
    }

    /// A piece of `len` bytes; an empty one where there is no memory, which whoever needs it will be told.
    fn fetched(len: usize) -> Self {
        let mut buffer = Vec::new();
        if buffer.try_reserve_exact(len).is_ok() {
            buffer.resize(len, 0);
            buffer.clear();
        }
        Self(buffer)
    }

    fn release(&mut self) -> usize {
        std::mem::take(&mut self.0).capacity()
    }
}

fn room() -> MutexGuard<'static, Room> {
    ROOM.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An empty buffer for a copy of `len` bytes.
pub(super) fn take(len: usize) -> Result<Vec<u8>, TryReserveError> {
    room().take(len)
}

/// Makes room for a copy of `len` bytes. Nobody who wants memory meanwhile waits for it.
pub(crate) fn prepare(len: u64) {
    let Ok(len) = usize::try_from(len) else { return };
    if room().0.capacity() < len {
        let fetched = Room::fetched(len);
        *room() = fetched;
    }
}

/// Bytes that are ready.
pub(crate) fn bytes() -> u64 {
    room().0.capacity() as u64
}

/// Gives back what was made ready.
pub(crate) fn release() {
    room().release();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_ready_is_taken_once() {
        let mut room = Room(Vec::new());
        assert_eq!(room.take(1000).map(|buffer| buffer.capacity()), Ok(1000));
        room = Room::fetched(1000);
        let at = room.0.as_ptr();
        assert_eq!((room.0.len(), room.0.capacity()), (0, 1000));
        // Neither for what does not fit nor for what would waste most of it.
        for other in [1001, 499] {
            let taken = room.take(other).unwrap_or_default();
            assert_ne!(taken.as_ptr(), at);
        }
        let taken = room.take(900).unwrap_or_default();
        assert_eq!((taken.as_ptr(), taken.len(), room.release()), (at, 0, 0));
        room = Room::fetched(900);
        assert_eq!((room.release(), room.release()), (900, 0));
        assert!(room.take(usize::MAX).is_err() && Room::fetched(usize::MAX).0.capacity() == 0);
    }
}
