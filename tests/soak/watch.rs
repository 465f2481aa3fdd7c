//! Watches the workers: memory as they go, and that they do go.

use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::heap::live;

const GLANCE: Duration = Duration::from_millis(25);

pub struct Watch {
    operations: u64,
    done: AtomicU64,
    over: AtomicBool,
    failed: AtomicBool,
    /// What each worker is doing, from when on.
    doing: Vec<Mutex<(String, Instant)>>,
    /// How long one operation may take.
    stuck: Duration,
    /// (operations done, bytes allocated, bytes of memory that is no file's).
    samples: Mutex<Vec<(u64, [u64; 2])>>,
}

/// Says that a worker is done, however it ends.
pub struct Ends<'w>(&'w Watch, usize);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.tell(self.1, "done".into());
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Release);
        }
    }
}

impl Watch {
    pub fn new(threads: usize, operations: u64, stuck: Duration) -> Self {
        let doing = (0..threads).map(|_| Mutex::new(("nothing yet".to_owned(), Instant::now()))).collect();
        // Room for all, so that watching is no leak itself.
        let samples = Mutex::new(Vec::with_capacity(1 << 16));
        let (over, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { operations, done: AtomicU64::new(0), over, failed, doing, stuck, samples }
    }

    pub fn ends_with(&self, thread: usize) -> Ends<'_> {
        Ends(self, thread)
    }

    fn tell(&self, thread: usize, what: String) {
        *self.doing[thread].lock().unwrap() = (what, Instant::now());
    }

    /// A worker begins something; whether it should.
    pub fn next(&self, thread: usize, what: String) -> bool {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.tell(thread, what);
        !self.failed.load(Ordering::Acquire)
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub fn begin(&self) {
        self.over.store(false, Ordering::Release);
    }

    pub fn run(&self) {
        while !self.over.load(Ordering::Acquire) {
            let sample = (self.done.load(Ordering::Relaxed), [live(), resident()]);
            let mut samples = self.samples.lock().unwrap();
            if samples.len() < samples.capacity() {
                samples.push(sample);
            }
            drop(samples);
            let doing: Vec<_> = self.doing.iter().map(|one| one.lock().unwrap().clone()).collect();
            if doing.iter().any(|(what, since)| what != "done" && since.elapsed() > self.stuck) {
                let mut text = "a thread is stuck\n".to_owned();
                for (thread, (what, since)) in doing.iter().enumerate() {
                    text += &format!("thread {thread}, for {:.0} s: {what}\n", since.elapsed().as_secs_f64());
                }
                // Past the test harness, which would wait for the thread.
                std::io::stderr().write_all(text.as_bytes()).unwrap();
                std::process::abort();
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Bytes allocated and bytes resident in each tenth of the run: the medians of what was seen.
    pub fn memory(&self) -> [[u64; 10]; 2] {
        let samples = self.samples.lock().unwrap();
        [0, 1].map(|kind| {
            std::array::from_fn(|tenth| {
                let of = |n: u64| self.operations * (tenth as u64 + n) / 10;
                let during = samples.iter().filter(|(n, _)| (of(0)..=of(1)).contains(n));
                let mut seen: Vec<_> = during.map(|(_, bytes)| bytes[kind]).collect();
                seen.sort_unstable();
                seen.get(seen.len() / 2).copied().unwrap_or_default()
            })
        })
    }
}

/// Bytes of memory that is no file's.
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// How many files this process has open.
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// The maps of files in a folder.
pub fn maps_of(folder: &Path) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter(|line| line.contains(folder.to_str().unwrap())).map(str::to_owned).collect()
}
