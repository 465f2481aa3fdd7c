//! What the engine learns of a GPU: kernels that compute wrongly are found, dropped, reported and remembered.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

mod common;
mod gpu;
#[path = "facts/kept.rs"]
mod kept;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use calora::Error;
use calora::adapter::Tail;
use calora::cpu::{CpuDevice, CpuOptions};
use calora::device::{Activations, Device, DeviceFacts, Model};
use calora::gpu::{CapsMask, FactsOptions, Family, GpuChoice, GpuDevice, GpuOptions, Timing};
use calora::quant::Bits::{Int4, Int8};
use calora::weights::DType;
use common::{Store, nmse, random_model, random_tail, scheme, small_config};
use gpu::all_logits;
use kept::{file, sealed};

/// Changes a kernel's text, or not.
type Fault = Box<dyn Fn(&str, &str) -> Option<String>>;

thread_local! {
    /// What is wrong with this thread's driver.
    static FAULT: RefCell<Option<Fault>> = const { RefCell::new(None) };
}

/// The hook of the GPU's options.
fn rewrite(name: &str, wgsl: String) -> String {
    FAULT.with_borrow(|fault| fault.as_ref().and_then(|fault| fault(name, &wgsl))).unwrap_or(wgsl)
}

/// Runs with a driver that is wrong in one way.
fn with_fault<T>(fault: impl Fn(&str, &str) -> Option<String> + 'static, work: impl FnOnce() -> T) -> T {
    FAULT.set(Some(Box::new(fault)));
    let value = work();
    FAULT.set(None);
    value
}

/// In kernels that are meant, one text instead of another, which must be there.
fn replace(
    meant: impl Fn(&str) -> bool + 'static,
    from: &'static str,
    to: &'static str,
) -> impl Fn(&str, &str) -> Option<String> {
    move |name, wgsl| {
        meant(name).then(|| {
            assert!(wgsl.contains(from), "{name} has no {from}");
            wgsl.replace(from, to)
        })
    }
}

fn facts(folder: Option<&Path>, timing: Timing) -> FactsOptions {
    FactsOptions { self_test: true, folder: folder.map(Path::to_owned), timing }
}

fn options(activations: Activations, folder: Option<&Path>) -> GpuOptions {
    GpuOptions {
        activations,
        max_tokens: 16,
        choice: GpuChoice::Any,
        facts: facts(folder, Timing::Never),
        rewrite: Some(rewrite),
        ..GpuOptions::default()
    }
}

fn open(model: &Model, options: GpuOptions) -> GpuDevice {
    GpuDevice::new(model, options).unwrap()
}

fn failures(facts: &DeviceFacts) -> BTreeSet<String> {
    facts.failures().map(|fact| fact.kernel.clone()).collect()
}

fn chosen(facts: &DeviceFacts) -> BTreeSet<String> {
    facts.kernels.iter().filter(|fact| fact.chosen).map(|fact| fact.kernel.clone()).collect()
}

fn model() -> Model {
    random_model(&small_config(), scheme(Int4, Some(32), true), 11)
}

fn tail(model: &Model) -> Tail {
    random_tail(&model.recipe, 4, 8, DType::F16, 5)
}

const TOKENS: [u32; 11] = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46];

/// With and without an adapter, prefilled and decoded, the same as on the CPU.
fn check(what: &str, model: &Model, device: &mut GpuDevice) {
    let activations = device.info().activations;
    let options = CpuOptions { threads: Some(1), activations, max_tokens: 16, simd: None };
    let mut cpu = CpuDevice::new(model, options).unwrap();
    let tail = tail(model);
    let (on_cpu, on_gpu) = (cpu.load_tail(&tail).unwrap(), device.load_tail(&tail).unwrap());
    let allowed = if activations == Activations::F32 { 1e-8 } else { 1e-4 };
    for attached in [false, true] {
        for tokens in [&TOKENS[..1], &TOKENS] {
            let expected = all_logits(&mut cpu, tokens, attached.then_some(on_cpu));
            let error = nmse(&all_logits(device, tokens, attached.then_some(on_gpu)), &expected);
            assert!(
                error <= allowed,
                "{what}, adapter {attached}, {} tokens: NMSE {error:.1e}",
                tokens.len()
            );
        }
    }
    let cache = device.create_cache(1).unwrap();
    let token = gpu::forward(device, &TOKENS[..1], 0, cache, None, calora::device::Want::Argmax);
    let cache = cpu.create_cache(1).unwrap();
    assert_eq!(token, gpu::forward(&mut cpu, &TOKENS[..1], 0, cache, None, calora::device::Want::Argmax));
}

#[test]
fn every_kernel_passes_on_a_sound_driver() {
    let known: BTreeSet<String> = calora::gpu::shaders().into_iter().map(|shader| shader.name).collect();
    assert_eq!(known.len(), calora::gpu::shaders().len(), "names are not unique");
    let split = CapsMask { family: Some(Family::Split), ..CapsMask::default() };
    let mut tried = BTreeSet::new();
    for (mask, every) in [(CapsMask::default(), true), (split, false)] {
        let options =
            GpuOptions { mask, facts: facts(None, Timing::Never), ..options(Activations::F32, None) };
        let facts = GpuDevice::self_test(&options, every, Duration::from_secs(600)).unwrap();
        assert_eq!(failures(&facts), BTreeSet::new(), "{facts:?}");
        assert_eq!((facts.untested, facts.kept), (0, 0));
        // Half a step of int8 is the coarsest that any result may be wrong by.
        let worst = facts.kernels.iter().map(|fact| fact.error).fold(0.0, f64::max);
        assert!(worst > 0.0 && worst < 4e-3, "{worst}");
        tried.extend(facts.kernels.into_iter().map(|fact| fact.kernel));
    }
    // Software Vulkan has subgroups of one size; what is made for others cannot run here.
    assert!(tried.len() > 350, "{} kernels", tried.len());
    assert!(tried.is_subset(&known), "{:?}", tried.difference(&known).collect::<Vec<_>>());
}

/// One fault a family, in the very kernel that the device would use.
#[test]
fn a_wrong_kernel_is_dropped_and_the_model_computes_rightly() {
    let model = model();
    let mut sound = open(&model, options(Activations::Int8, None));
    check("sound", &model, &mut sound);
    let designed = chosen(&sound.facts().unwrap());
    assert!(failures(&sound.facts().unwrap()).is_empty());
    assert!(!sound.info().detail.contains("replaced"));
    let of = |family: &'static str, word: &'static str| {
        let mut names = designed.iter().filter(|name| name.starts_with(family) && name.contains(word));
        names.next().unwrap_or_else(|| panic!("no {family} {word}: {designed:?}")).clone()
    };
    let table = [
        (of("Mat", "int8 · tail none"), "y[i] = value;", "y[i] = value * 1.0002;"),
        (of("Mat", "int8 · tail none"), "params.x_row + t", "0u * params.x_row + t"),
        (of("Matvec", "x int8 · tail Half"), "dot(vec4<f32>(up[u + 1u]), inner[i + 1u])", "0.0"),
        (of("Embed", ""), "columns < vec4<u32>(params.cols)", "columns <= vec4<u32>(params.cols)"),
        (of("Prepare", "int8"), "total / f32(params.cols)", "total / f32(params.blocks * 32u)"),
        (of("Prepare", "int8"), "= scale > 0.0", "= scale > 1.0"),
        (of("Shrink", ""), "factor.x * scale * value", "factor.x * scale * abs(value)"),
        (of("Rope", ""), "params.position + token", "params.position + token + 1u"),
        (of("Attention", ""), "vec4<u32>(tile + p) <= last", "vec4<u32>(tile + p) < last"),
        (of("Combine", ""), "exp(spans[at + params.dim] - largest)", "1.0"),
        (of("Argmax", ""), "v > logit", "v >= logit"),
        // NaN, and no WGSL at all.
        (
            of("Attention", ""),
            "let factor = select(1.0 / total[j]",
            "let factor = select(0.0 / (total[j] - total[j])",
        ),
        (of("Rope", ""), "fn main", "no function main"),
    ];
    for (name, from, to) in table {
        // Some texts stand in one of several shapes only.
        let meant = name.clone();
        let from = from.trim_start_matches("= ");
        let to = to.trim_start_matches("= ");
        let fault = move |name: &str, wgsl: &str| (name == meant).then(|| wgsl.replace(from, to));
        let mut device = with_fault(fault, || {
            let mut device = open(&model, options(Activations::Int8, None));
            check(&format!("{name}: {from}"), &model, &mut device);
            device
        });
        let facts = device.facts().unwrap();
        assert_eq!(failures(&facts), BTreeSet::from([name.clone()]), "{from}: {to}");
        assert!(!chosen(&facts).contains(&name));
        if !name.contains("tail Half") && !name.starts_with("Shrink") {
            assert!(device.info().detail.contains("replaced"), "{}", device.info().detail);
        }
        // Kernels are kept by the device: the fault is gone, the verdict is not.
        check(&name, &model, &mut device);
    }
}

#[test]
fn where_every_variant_fails_the_error_names_the_kernel() {
    let model = model();
    let fault = || replace(|name| name.starts_with("Attention"), "let visible", "let visible_");
    let result = with_fault(fault(), || GpuDevice::new(&model, options(Activations::F32, None)));
    let Err(error) = result else { panic!("nothing to compute attention with") };
    let Error::Gpu { what, reason } = &error else { panic!("{error}") };
    assert!(what.contains("Attention") && reason.contains("no variant"), "{error}");
    assert!(reason.contains("visible") && !reason.contains('\n'), "the driver's own words: {error}");
    // Without the self-test the driver's refusal comes when the kernel is needed.
    let untested = GpuOptions { facts: FactsOptions::default(), ..options(Activations::F32, None) };
    with_fault(fault(), || {
        let mut device = open(&model, untested);
        assert!(device.facts().is_none());
        let cache = device.create_cache(1).unwrap();
        let pass = calora::device::Forward {
            tokens: &[1],
            position: 0,
            cache,
            tail: None,
            scales: &[],
            want: calora::device::Want::Argmax,
        };
        assert!(matches!(device.forward(&pass), Err(Error::Gpu { .. })));
    });
}

/// Where all kernels fail that read one form, the data are stored in another.
#[test]
fn scales_and_adapters_take_another_form() {
    let model = random_model(&small_config(), scheme(Int8, Some(32), true), 7);
    let f16 = "let pair = unpack2x16float(scales[i >> 1u]);";
    let fault = replace(|name| name.contains("scales f16"), f16, "let pair = vec2<f32>(0.01, 0.01);");
    with_fault(fault, || {
        let mut device = open(&model, options(Activations::Int8, None));
        check("scales", &model, &mut device);
        let facts = device.facts().unwrap();
        assert!(chosen(&facts).iter().any(|name| name.contains("scales f32")), "{facts:?}");
        assert!(chosen(&facts).iter().all(|name| !name.contains("scales f16")), "{facts:?}");
    });
    for (form, left) in [("Half", ["tail F16", "tail F32"]), ("F16", ["tail Half", "tail F32"])] {
        let meant = move |name: &str| name.starts_with("Shrink") && name.ends_with(form);
        let fault = replace(meant, "factor.x * scale", "factor.y * scale");
        with_fault(fault, || {
            let mut device = open(&model, options(Activations::Int8, None));
            check(form, &model, &mut device);
            let facts = device.facts().unwrap();
            assert!(chosen(&facts).iter().any(|name| left.iter().any(|l| name.contains(l))), "{facts:?}");
        });
    }
    let fault =
        replace(|n| n.starts_with("Shrink") && !n.ends_with("F32"), "factor.x * scale * value", "value");
    with_fault(fault, || {
        let mut device = open(&model, options(Activations::Int8, None));
        check("only float32 adapters", &model, &mut device);
        assert!(chosen(&device.facts().unwrap()).iter().any(|name| name.contains("tail F32")));
    });
}

#[test]
fn times_choose_where_they_are_asked_for_and_come_from_the_file() {
    let model = random_model(&small_config(), Store::F32, 3);
    let folder = tempfile::tempdir().unwrap();
    let with = |timing| GpuOptions {
        facts: facts(Some(folder.path()), timing),
        ..options(Activations::F32, Some(folder.path()))
    };
    let device = open(&model, with(Timing::Always));
    let first = device.facts().unwrap();
    let timed: Vec<_> = first.kernels.iter().filter(|fact| fact.micros.is_some()).collect();
    assert!(timed.len() >= 8, "{first:?}");
    assert!(timed.iter().all(|fact| fact.micros.unwrap() > 0.0));
    assert_eq!(chosen(&open(&model, with(Timing::Always)).facts().unwrap()), chosen(&first));
    // Other times, other choices: each kernel in turn is the fastest of its kind.
    let path = file(folder.path(), "facts");
    let text = String::from_utf8(std::fs::read(&path).unwrap()[40..].to_vec()).unwrap();
    for winner in timed.iter().filter(|fact| fact.kernel.starts_with("Mat")) {
        let line = |line: &str| {
            let mut fields: Vec<&str> = line.split('\t').collect();
            if fields.len() == 4 && !fields[2].is_empty() {
                fields[2] = if fields[0] == winner.kernel { "1" } else { "2" };
            }
            format!("{}\n", fields.join("\t"))
        };
        std::fs::write(&path, sealed(&text.lines().map(line).collect::<String>())).unwrap();
        let mut device = open(&model, with(Timing::Always));
        assert!(chosen(&device.facts().unwrap()).contains(&winner.kernel), "{}", winner.kernel);
        check(&winner.kernel, &model, &mut device);
        // By default a software GPU's times choose nothing.
        let auto = open(&model, with(Timing::Auto));
        let designed = open(&model, with(Timing::Never));
        if auto.info().detail.contains("Cpu") {
            assert_eq!(chosen(&auto.facts().unwrap()), chosen(&designed.facts().unwrap()));
        }
        // Times that hardly differ choose nothing either.
        std::fs::write(
            &path,
            sealed(&text.lines().map(line).collect::<String>().replace("\t2\t", "\t1.05\t")),
        )
        .unwrap();
        let close = open(&model, with(Timing::Always));
        assert_eq!(chosen(&close.facts().unwrap()), chosen(&designed.facts().unwrap()));
    }
}

#[test]
fn an_engine_with_a_folder_knows_its_gpu() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gqa");
    let folder = tempfile::tempdir().unwrap();
    let load = |device, device_folder| {
        let options = calora::engine::EngineOptions { device, device_folder, ..Default::default() };
        calora::engine::Engine::load(&base, options).unwrap()
    };
    let kept = || Some(folder.path().to_owned());
    use calora::engine::DeviceChoice::{Cpu, Gpu};
    let first = load(Gpu, kept()).device_facts().unwrap();
    assert_eq!((first.kept, first.failures().count()), (0, 0));
    let engine = load(Gpu, kept());
    let second = engine.device_facts().unwrap();
    assert_eq!((second.kept, second.kernels.len()), (first.kernels.len(), first.kernels.len()));
    assert_eq!(chosen(&second), chosen(&first));
    assert!(first.seconds > 0.0 && second.seconds == 0.0, "nothing is tried again");
    engine.simulate_device_loss().unwrap();
    assert!(engine.device_facts().is_none(), "a lost device has no facts");
    assert!(load(Gpu, None).device_facts().is_none(), "no folder, no self-test");
    assert!(load(Cpu, kept()).device_facts().is_none(), "a CPU has no driver");

    // A driver with which no attention computes rightly.
    let path = file(folder.path(), "facts");
    let mut text = String::from_utf8(std::fs::read(&path).unwrap()[40..].to_vec()).unwrap();
    text = text.lines().filter(|line| !line.starts_with("Attention")).map(|l| format!("{l}\n")).collect();
    let shaders = calora::gpu::shaders();
    for shader in shaders.iter().filter(|shader| shader.name.starts_with("Attention")) {
        text += &format!("{}\t0\t\tnoise instead of an answer\n", shader.name);
    }
    std::fs::write(&path, sealed(&text)).unwrap();
    let broken = |fallback_to_cpu| {
        let device_folder = kept();
        let options = calora::engine::EngineOptions {
            device: Gpu,
            device_folder,
            fallback_to_cpu,
            ..Default::default()
        };
        calora::engine::Engine::load(&base, options)
    };
    let error = broken(None).unwrap_err().to_string();
    assert!(error.contains("Attention") && error.contains("noise instead of an answer"), "{error}");
    assert_eq!(broken(Some(true)).unwrap().device_info().kind, "cpu");
}
