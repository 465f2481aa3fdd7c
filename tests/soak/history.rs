//! What a folder of adapters held at which time, so that a reader can be told wrong.
//!
//! Changes and reads take time; a read may see every change that was not surely over and replaced when it began.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which content a name leads to; `None`: there is none.
pub type Content = Option<usize>;

#[derive(Debug)]
struct Change {
    content: Content,
    began: u64,
    /// Never, while it is in progress.
    ended: u64,
}

/// All changes of all names, in a common time.
#[derive(Default)]
pub struct History {
    /// From 1 on: at 0 all began, with nothing.
    clock: AtomicU64,
    changes: Mutex<HashMap<&'static str, Vec<Change>>>,
}

impl History {
    /// Later than every time that was given before.
    pub fn now(&self) -> u64 {
        1 + self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Does what changes a name's content; it counts if `work` says so.
    pub fn change(&self, name: &'static str, content: Content, work: impl FnOnce() -> bool) {
        let began = self.now();
        {
            let mut changes = self.changes.lock().unwrap();
            let of =
                changes.entry(name).or_insert_with(|| vec![Change { content: None, began: 0, ended: 0 }]);
            of.push(Change { content, began, ended: u64::MAX });
        }
        let counts = work();
        let ended = self.now();
        let mut changes = self.changes.lock().unwrap();
        let of = changes.get_mut(name).unwrap();
        let index = of.iter().position(|change| change.began == began).unwrap();
        if !counts {
            of.remove(index);
            return;
        }
        of[index].ended = ended;
        // What ended before the oldest reader could have begun is never asked for: readers are done within one operation.
        if of.len() > 64 {
            of.drain(..16);
        }
    }

    /// Whether a read from `began` to `ended` may have found `content`.
    pub fn allows(&self, name: &str, content: Content, began: u64, ended: u64) -> bool {
        let changes = self.changes.lock().unwrap();
        let Some(of) = changes.get(name) else { return content.is_none() };
        let replaced =
            |change: &Change| of.iter().any(|later| later.began > change.ended && later.ended < began);
        of.iter().any(|change| change.content == content && change.began < ended && !replaced(change))
    }

    /// For a complaint.
    pub fn tell(&self, name: &str) -> String {
        let changes = self.changes.lock().unwrap();
        let last = changes.get(name).map_or(&[][..], |of| &of[of.len().saturating_sub(8)..]);
        format!("{name}: {last:?}")
    }
}

#[test]
fn a_read_sees_what_was_there_and_nothing_older() {
    let history = History::default();
    assert!(history.allows("a", None, 0, 1) && !history.allows("a", Some(1), 0, 1));
    history.change("a", Some(1), || true);
    let between = history.now();
    history.change("a", Some(2), || true);
    history.change("a", Some(3), || false);
    let (began, ended) = (history.now(), history.now());
    assert_eq!(
        [1, 2, 3].map(|content| history.allows("a", Some(content), began, ended)),
        [false, true, false]
    );
    // A slow reader may have seen the older one.
    assert_eq!(
        [1, 2, 3].map(|content| history.allows("a", Some(content), between, ended)),
        [true, true, false]
    );
    history.change("a", None, || {
        let (began, ended) = (history.now(), history.now());
        assert!(history.allows("a", Some(2), began, ended) && history.allows("a", None, began, ended));
        true
    });
    let (began, ended) = (history.now(), history.now());
    assert!(history.allows("a", None, began, ended) && !history.allows("a", Some(2), began, ended));
}
