//! Random operations from several threads on one engine and one folder of adapters, against a model of what may be seen.
//!
//! Every answer is compared with what a fresh session of an undisturbed engine gives; every adapter with what its folder
//! held meanwhile; and when all is over, nothing may be left. A stuck thread ends the process with what all are doing.
//!
//! `CALORA_SOAK_OPERATIONS` says how many (10,000 on the CPU by default, 400 on the GPU), `CALORA_SOAK_SEED` which,
//! `CALORA_SOAK_THREADS` how many threads: with one, a seed repeats exactly; with several, each thread's choices do, and
//! the system decides how they meet. The figures are printed: `cargo test --test soak -- --nocapture`.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;
#[allow(dead_code)]
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
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use watch::Watch;
use worker::Worker;
use world::{Kind, World};

/// What may be held more at the end than after the first tenth: ten quiet runs differed by at most 1.1 MiB, and a leak of
/// one small session a hundred operations is several times that.
const MOST_GROWTH: u64 = 4 << 20;

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
    let watch = Watch::new(threads as usize, operations);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch.run());
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let (world, watch) = (&world, &watch);
                scope.spawn(move || {
                    let _ends = watch.ends_with(thread as usize);
                    Worker::new(world, watch, seed, thread as usize).run(operations / threads);
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
    let [allocated, resident] = watch.memory();
    let mib = |bytes: [u64; 10]| bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
    println!("{}", world.counts());
    println!("{:.1} s; MiB in each tenth:", started.elapsed().as_secs_f64());
    println!("allocated {:.2?}\nRssAnon   {:.1?}", mib(allocated), mib(resident));

    // Nothing is left, on the device or beside it.
    world.pool.lock().unwrap().clear();
    world.library.release();
    world.engine.evict_idle();
    world.answer_once();
    world.engine.evict_idle();
    world.engine.forget_prefixes();
    assert_eq!(world.held(), held, "the device holds what it held before");
    assert!(world.engine.residency().lists.is_empty(), "{:?}", world.engine.residency());
    assert_eq!(world.engine.prefix_bytes(), 0);
    let folder = world.forget_library();
    assert_eq!(watch::maps_of(&folder), Vec::<String>::new(), "no file is mapped any more");
    if kind == Kind::Cpu {
        // Drivers open files as they like.
        assert_eq!(watch::open_files(), files);
    }
    // The first tenth fills tables and pools; short runs tell nothing.
    if operations >= 5000 {
        assert!(allocated[9] < allocated[1] + MOST_GROWTH, "{allocated:?}");
    }
}

#[test]
fn nothing_random_on_the_cpu_goes_wrong() {
    soak(Kind::Cpu, 10_000);
}

#[test]
fn nothing_random_on_the_gpu_goes_wrong() {
    soak(Kind::Gpu, 400);
}
