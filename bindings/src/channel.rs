//! A bounded queue that a suspended caller of another language waits on.
//!
//! Waking such a caller runs foreign code, which wants locks of its own, and foreign code may come in here with one of them:
//! Swift cancels a task under the lock that resuming the task asks for. A channel that wakes under its own lock, as
//! async-channel 2.5 does, can then wait for Swift, and Swift for it, for ever; those that do not (of futures, of tokio) know
//! one waiter, and a stream may be pulled twice. Invariant: no waker is woken or dropped while a lock of ours is held.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

struct State<T> {
    queue: VecDeque<T>,
    closed: bool,
    waiting: Vec<Waker>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    capacity: usize,
}

/// Closes the channel when its last clone goes.
pub(crate) struct Sender<T>(Arc<End<T>>);

/// Closes the channel when it goes; what is queued is received before that shows.
pub(crate) struct Receiver<T>(End<T>);

struct End<T>(Arc<Shared<T>>);

/// Why a value was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

/// A channel for at most so many values that wait.
pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), closed: false, waiting: Vec::new() };
    let shared = Arc::new(Shared { state: Mutex::new(state), capacity });
    (Sender(Arc::new(End(shared.clone()))), Receiver(End(shared)))
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and then wakes everyone who waits.
    fn change<R>(&self, change: impl FnOnce(&mut State<T>) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        result
    }

    fn close(&self) {
        self.change(|state| state.closed = true);
    }
}

impl<T> Sender<T> {
    pub(crate) fn try_send(&self, value: T) -> Result<(), Refused> {
        let Self(end) = self;
        let capacity = end.0.capacity;
        let refused = end.0.change(|state| match () {
            () if state.closed => Some((value, Refused::Closed)),
            () if state.queue.len() >= capacity => Some((value, Refused::Full)),
            () => {
                state.queue.push_back(value);
                None
            }
        });
        refused.map_or(Ok(()), |(_, why)| Err(why))
    }

    pub(crate) fn close(&self) {
        self.0.0.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.0.lock().closed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.0.lock().queue.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.0.lock().queue.len() >= self.0.0.capacity
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Receiver<T> {
    /// The next value; nothing once the channel is closed and empty.
    pub(crate) async fn recv(&self) -> Option<T> {
        poll_fn(|context| self.poll(context)).await
    }

    pub(crate) fn close(&self) {
        self.0.0.close();
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Option<T>> {
        // Declared before the lock, so that it is dropped behind it.
        let waker = context.waker().clone();
        let mut state = self.0.0.lock();
        if let Some(value) = state.queue.pop_front() {
            return Poll::Ready(Some(value));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        if !state.waiting.iter().any(|known| known.will_wake(&waker)) {
            state.waiting.push(waker);
        }
        Poll::Pending
    }
}

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    fn now<T>(receiver: &Receiver<T>) -> Poll<Option<T>> {
        receiver.poll(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn values_come_in_order_and_then_the_end() {
        let (sender, receiver) = bounded(2);
        assert_eq!(now(&receiver), Poll::Pending);
        assert_eq!([sender.try_send(1), sender.try_send(2)], [Ok(()), Ok(())]);
        assert!(sender.is_full() && sender.try_send(3) == Err(Refused::Full));
        assert_eq!(now(&receiver), Poll::Ready(Some(1)));
        assert!(!sender.is_full() && !sender.is_empty());
        let other = sender.clone();
        drop(sender);
        assert!(!other.is_closed());
        drop(other);
        assert_eq!([now(&receiver), now(&receiver)], [Poll::Ready(Some(2)), Poll::Ready(None)]);

        let (sender, receiver) = bounded(1);
        receiver.close();
        assert_eq!((sender.try_send(1), now(&receiver)), (Err(Refused::Closed), Poll::Ready(None)));
        let (sender, receiver) = bounded::<u8>(1);
        drop(receiver);
        assert!(sender.is_closed());
    }

    /// Foreign code that comes back at once, as a caller does that is resumed where it is woken.
    struct Nosy(Sender<u8>, AtomicUsize);

    impl Wake for Nosy {
        fn wake(self: Arc<Self>) {
            assert!(self.0.0.0.state.try_lock().is_ok(), "woken under the lock");
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Drop for Nosy {
        fn drop(&mut self) {
            assert!(self.0.0.0.state.try_lock().is_ok(), "dropped under the lock");
        }
    }

    #[test]
    fn whoever_waits_is_woken_behind_the_lock() {
        let (sender, receiver) = bounded(1);
        let nosy = Arc::new(Nosy(sender.clone(), AtomicUsize::new(0)));
        let other = Arc::new(Nosy(sender.clone(), AtomicUsize::new(0)));
        let wait = |who: &Arc<Nosy>| {
            let waker = Waker::from(who.clone());
            assert_eq!(receiver.poll(&Context::from_waker(&waker)), Poll::Pending);
        };
        wait(&nosy);
        wait(&nosy);
        wait(&other);
        sender.try_send(1).unwrap();
        assert_eq!([&nosy, &other].map(|who| who.1.load(Ordering::Relaxed)), [1, 1], "once each");
        assert_eq!(now(&receiver), Poll::Ready(Some(1)));
        wait(&nosy);
        sender.close();
        assert_eq!(nosy.1.load(Ordering::Relaxed), 2);
    }
}
