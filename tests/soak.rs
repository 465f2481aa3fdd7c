//! Random operations from several threads on one engine and one folder of adapters, against a model of what may be seen.
//!
//! Every answer is compared with what a fresh session of an undisturbed engine gives; every adapter with what its folder
//! held meanwhile; and when all is over, nothing may be left. A stuck thread ends the process with what all are doing.
//!
//! `CALORA_SOAK_OPERATIONS` says how many (10,000 on the CPU by default, 400 on the GPU), `CALORA_SOAK_SEED` which,
//! `CALORA_SOAK_THREADS` how many threads: with one, a seed repeats exactly; with several, each thread's choices do, and
//! the system decides how they meet. `CALORA_SOAK_STUCK_SECONDS` (120) is how long one operation may take. The figures are printed: `cargo test --test soak -- --nocapture`.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;
#[path = "session/device.rs"]
mod device;
#[allow(dead_code)]
#[path = "survive/faulty.rs"]
mod faulty;
#[path = "soak/heap.rs"]
mod heap;
#[path = "soak/history.rs"]
mod history;
#[path = "soak/reference.rs"]
mod reference;
#[path = "soak/talk.rs"]
mod talk;
#[path = "soak/watch.rs"]
mod watch;
#[path = "soak/worker.rs"]
mod worker;
#[path = "soak/world.rs"]
mod world;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use watch::Watch;
use worker::Worker;
use world::{Kind, World};

/// What may be allocated more at rest after all operations than after the first tenth: 28 bytes an operation. Measured: 8,
/// of tables that have grown.
const MOST_GROWTH: u64 = 256 << 10;

/// Memory and files are the whole process's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn soak(kind: Kind, operations: u64) {
    let operations = number("CALORA_SOAK_OPERATIONS").unwrap_or(operations);
    let threads = number("CALORA_SOAK_THREADS").unwrap_or(4);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("CALORA_SOAK_SEED").unwrap_or(now % 1_000_000);
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    println!("soak on {kind:?}: CALORA_SOAK_SEED={seed}, {operations} operations, {threads} threads");

    let started = Instant::now();
    let world = World::new(kind, threads as usize);
    let files = watch::open_files();
    let held = world.held();
    // Nothing takes a tenth of this on a busy machine either; under valgrind it may.
    let stuck = Duration::from_secs(number("CALORA_SOAK_STUCK_SECONDS").unwrap_or(120));
    let watch = Watch::new(threads as usize, operations, stuck);
    // The first tenth fills what is filled once.
    let rests = [(0, operations / 10), (1, operations - operations / 10)].map(|(part, operations)| {
        run(&world, &watch, (seed, part), threads, operations / threads);
        world.rest();
        (heap::live(), watch::resident())
    });
    println!("{}", world.counts());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("{:.1} s; MiB in each tenth:", started.elapsed().as_secs_f64());
    let [allocated, resident] = watch.memory().map(|tenths| tenths.map(mib));
    println!("allocated {allocated:.2?}\nRssAnon   {resident:.1?}");
    let [early, late] = rests;
    println!(
        "at rest after the first tenth and after all: allocated {:.3}, {:.3}",
        mib(early.0),
        mib(late.0)
    );
    println!("RssAnon {:.1}, {:.1}", mib(early.1), mib(late.1));
    // Short runs fill their tables all the time, and drivers what they like.
    if operations >= 5000 && kind == Kind::Cpu {
        assert!(late.0 < early.0 + MOST_GROWTH, "{early:?} grew to {late:?}");
    }

    // Nothing is left, on the device or beside it.
    assert_eq!(world.held(), held, "the device holds what it held before");
    assert!(world.engine.residency().lists.is_empty(), "{:?}", world.engine.residency());
    assert_eq!(world.engine.prefix_bytes(), 0);
    let folder = world.forget_library();
    assert_eq!(watch::maps_of(&folder), Vec::<String>::new(), "no file is mapped any more");
    if kind == Kind::Cpu {
        // Drivers open files as they like.
        assert_eq!(watch::open_files(), files);
    }
}

/// So many operations on each of the threads, all at once.
fn run(world: &World, watch: &Watch, seed: (u64, u64), threads: u64, operations: u64) {
    watch.begin();
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch.run());
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let _ends = watch.ends_with(thread as usize);
                    Worker::new(world, watch, seed, thread as usize).run(operations);
                })
            })
            .collect();
        let failed = workers.into_iter().filter_map(|worker| worker.join().err()).next();
        watch.end();
        watching.join().unwrap();
        if let Some(panic) = failed {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn nothing_random_on_the_cpu_goes_wrong() {
    soak(Kind::Cpu, 10_000);
}

#[test]
fn nothing_random_on_the_gpu_goes_wrong() {
    soak(Kind::Gpu, 400);
}
