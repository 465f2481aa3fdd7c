//! The device around its kernels: adapters that come and go, matrices in parts, refusals, a loss.

use super::*;

/// A to B to A is bit-identical, detached equals never attached, and no adapter costs no dispatch.
#[test]
fn swap_and_detach_are_exact() {
    let model = random_model(&small_config(), scheme(Int4, Some(32), true), 8);
    let tokens = ids(&model, 9);
    let layers = model.recipe.shape.layers;
    for (variant, activations) in [(&VARIANTS[0], Activations::Int8), (&VARIANTS[2], Activations::F32)] {
        let mut device = open(&model, activations, variant.mask);
        let never = all_logits(&mut device, &tokens, None);
        let bare = device.last_dispatches();
        let a = device.load_tail(&random_tail(&model.recipe, 4, 8, DType::F16, 1)).unwrap();
        let first = all_logits(&mut device, &tokens, Some(a));
        let with_tail = device.last_dispatches();
        let b = device.load_tail(&random_tail(&model.recipe, 0, 16, DType::F32, 2)).unwrap();
        let other = all_logits(&mut device, &tokens, Some(b));
        assert!(nmse(&first, &never) > 1e-2 && nmse(&other, &first) > 1e-2, "the adapters do something");
        assert_eq!(first, all_logits(&mut device, &tokens, Some(a)), "{}: A, B, A", variant.name);
        assert_eq!(never, all_logits(&mut device, &tokens, None), "{}: detached", variant.name);
        assert_eq!(device.last_dispatches(), bare);
        let mut fresh = open(&model, activations, variant.mask);
        let again = fresh.load_tail(&random_tail(&model.recipe, 4, 8, DType::F16, 1)).unwrap();
        assert_eq!(
            first,
            all_logits(&mut fresh, &tokens, Some(again)),
            "{}: a fresh load of A",
            variant.name
        );
        // Embedding, then a layer: two norms, rounding before o and down, seven linears, rope, attention; the head,
        // which is packed here, with its norm. float32 needs no rounding.
        let roundings = if activations == Activations::Int8 { 2 } else { 0 };
        assert_eq!(bare, 1 + layers * (2 + roundings + 7 + 2) + 2, "{}", variant.name);
        // One shrink per distinct input: q k v, o, gate up, down, head.
        assert_eq!(with_tail, bare + layers * 4 + 1, "{}", variant.name);
        let before = device.memory().tails;
        device.drop_tail(a);
        assert!(device.memory().tails < before);
    }
}

#[test]
fn scales_are_factors_of_the_pass() {
    let model = random_model(&small_config(), scheme(Int4, Some(32), true), 8);
    let tokens = ids(&model, 9);
    let a = random_tail(&model.recipe, 4, 8, DType::F16, 1);
    let b = random_tail(&model.recipe, 3, 0, DType::F16, 2);
    let mut faded = a.clone();
    faded.branches.iter_mut().flatten().for_each(|branch| branch.scaling *= 0.3);
    let scaled = |device: &mut dyn Device, tails: &[&Tail], scales: &[f32]| {
        let (cache, tail) = (device.create_cache(9).unwrap(), Some(device.load_tails(tails).unwrap()));
        let (tokens, want) = (&tokens, Want::AllLogits);
        match device.forward(&Forward { tokens, position: 0, cache, tail, scales, want }).unwrap() {
            Answer::Logits(logits) => logits,
            other => panic!("{other:?} instead of logits"),
        }
    };
    for (variant, activations) in [(&VARIANTS[0], Activations::Int8), (&VARIANTS[2], Activations::F32)] {
        let mut gpu = open(&model, activations, variant.mask);
        let never = all_logits(&mut gpu, &tokens, None);
        let bare = gpu.last_dispatches();
        assert_eq!(scaled(&mut gpu, &[&a, &b], &[0.0, 0.0]), never, "{}: 0 is detached", variant.name);
        assert_eq!(gpu.last_dispatches(), bare);
        let whole = scaled(&mut gpu, &[&a, &b], &[]);
        assert_eq!(scaled(&mut gpu, &[&a, &b], &[1.0, 1.0]), whole, "{}: 1 is attached", variant.name);
        let a_alone = scaled(&mut gpu, &[&a], &[]);
        // Beside another adapter the ranks are summed in other groups.
        let error = nmse(&scaled(&mut gpu, &[&a, &b], &[1.0, 0.0]), &a_alone);
        assert!(error < 1e-9, "{}: {error:e}", variant.name);
        let third = scaled(&mut gpu, &[&a, &b], &[0.3, 1.0]);
        let error = nmse(&third, &scaled(&mut gpu, &[&faded, &b], &[]));
        assert!(error < 1e-9, "{}: {error:e}", variant.name);
        assert!(nmse(&third, &whole) > 1e-4 && nmse(&whole, &a_alone) > 1e-4, "{}", variant.name);
        let mut cpu = cpu(&model, activations);
        let on_cpu = scaled(&mut cpu, &[&a, &b], &[0.3, 1.0]);
        let error = nmse(&third, &on_cpu);
        assert!(error < if activations == Activations::F32 { 1e-8 } else { 1e-4 }, "{error:e}");
        let tail = Some(gpu.load_tails(&[&a, &b]).unwrap());
        let cache = gpu.create_cache(9).unwrap();
        for scales in [&[1.0][..], &[1.0, f32::NAN], &[1.0; 3]] {
            let want = Want::Nothing;
            let refused = gpu.forward(&Forward { tokens: &tokens, position: 0, cache, tail, scales, want });
            assert!(matches!(refused, Err(Error::InvalidOption { .. })), "{scales:?}");
        }
        assert!(matches!(gpu.load_tails(&[&a; 13]), Err(Error::InvalidOption { .. })));
    }
}

/// Matrices behind bindings of a few kilobytes: parts of every projection, the head and the embedding.
#[test]
fn matrices_split_by_rows() {
    let config = llama(serde_json::json!({"tie_word_embeddings": true}));
    // The largest binding in bytes. It holds eight of the widest rows, the fewest of a part, and the logits of five
    // tokens, so that the kernels stay the same.
    for (store, max_binding) in [
        (Store::F16, 2816),
        (scheme(Int4, Some(32), false), 2816),
        (scheme(Int8, Some(32), true), 2816),
        (scheme(Int3, Some(32), true), 2816),
        (scheme(Int2, Some(32), true), 2400),
    ] {
        let model = random_model(&config, store, 13);
        let tail = random_tail(&model.recipe, 3, 5, DType::F32, 9);
        let tokens = ids(&model, 70);
        for variant in [&VARIANTS[0], &VARIANTS[2]] {
            let mut whole = open(&model, Activations::F32, variant.mask);
            let mask = CapsMask { max_binding: Some(max_binding), ..variant.mask };
            let mut split = open(&model, Activations::F32, mask);
            for tokens in [&tokens[..1], &tokens[..50]] {
                let (a, b) = (whole.load_tail(&tail).unwrap(), split.load_tail(&tail).unwrap());
                let expected = all_logits(&mut whole, tokens, Some(a));
                let dispatches = whole.last_dispatches();
                let actual = all_logits(&mut split, tokens, Some(b));
                assert_eq!(actual, expected, "{}, {store:?}: splitting changes no sum", variant.name);
                assert!(split.last_dispatches() > dispatches + 5, "nothing was split");
            }
        }
    }
}

#[test]
fn too_large_is_an_error_and_nothing_breaks() {
    let model = random_model(&small_config(), Store::F32, 3);
    let mut device = open(&model, Activations::F32, CapsMask::default());
    let error = device.create_cache(1 << 40).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    let row = CapsMask { max_binding: Some(256), ..CapsMask::default() };
    let options = calora::gpu::GpuOptions {
        activations: Activations::F32,
        max_tokens: 8,
        choice: calora::gpu::GpuChoice::Any,
        mask: row,
        ..Default::default()
    };
    let Err(error) = GpuDevice::new(&model, options) else { panic!("eight rows do not fit") };
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    // The device goes on.
    assert!(all_logits(&mut device, &[1, 2], None).iter().all(|v| v.is_finite()));
}

#[test]
fn wrong_passes_are_refused() {
    let model = random_model(&small_config(), Store::F32, 3);
    let mut device = open(&model, Activations::F32, CapsMask::default());
    let cache = device.create_cache(4).unwrap();
    let tail = device.load_tail(&random_tail(&model.recipe, 2, 0, DType::F32, 1)).unwrap();
    let mut run = |tokens: &[u32], position, cache, tail| {
        device.forward(&Forward { tokens, position, cache, tail, scales: &[], want: Want::LastLogits })
    };
    assert!(matches!(run(&[], 0, cache, None), Err(Error::EmptyPrompt)));
    assert!(matches!(run(&[120], 0, cache, None), Err(Error::TokenOutOfRange { id: 120, .. })));
    assert!(matches!(run(&[1, 2], 3, cache, None), Err(Error::ContextFull { needed: 5, available: 4 })));
    let stale = calora::device::CacheId(999);
    assert!(matches!(run(&[1], 0, stale, None), Err(Error::InvalidOption { .. })));
    let stale = Some(calora::device::TailId(999));
    assert!(matches!(run(&[1], 0, cache, stale), Err(Error::InvalidOption { .. })));
    assert!(run(&[1], 0, cache, Some(tail)).is_ok());
    let other = random_model(&llama(serde_json::json!({"hidden_size": 32})), Store::F32, 3);
    assert!(device.load_tail(&random_tail(&other.recipe, 2, 0, DType::F32, 1)).is_err());
}

#[test]
fn a_lost_device_says_so() {
    let model = random_model(&small_config(), Store::F32, 3);
    let mut device = open(&model, Activations::F32, CapsMask::default());
    let cache = device.create_cache(4).unwrap();
    device.destroy();
    for _ in 0..2 {
        let pass = Forward { tokens: &[1], position: 0, cache, tail: None, scales: &[], want: Want::Argmax };
        let error = device.forward(&pass).unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
        let error = device.create_cache(4).unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
        let error = device.load_tail(&random_tail(&model.recipe, 2, 2, DType::F32, 1)).unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
    }
    drop(device);
    let mut again = open(&model, Activations::F32, CapsMask::default());
    assert!(all_logits(&mut again, &[1], None).iter().all(|v| v.is_finite()));
}

#[test]
fn the_machine_lists_its_gpus() {
    let all = GpuDevice::list();
    assert!(all.iter().any(|a| a.unusable.is_none()), "{all:?}");
    for adapter in all {
        eprintln!("{adapter:?}");
        assert!(!adapter.name.is_empty() && adapter.max_buffer > 0);
    }
}

/// Software Vulkan is of CPU type and gets the lanes family; a device of any other type the split family.
#[test]
fn the_family_follows_the_device_type() {
    let model = random_model(&small_config(), Store::F32, 3);
    let device = open(&model, Activations::F32, CapsMask::default());
    let software = device.info().detail.contains("Cpu");
    assert_eq!(device.caps().family, if software { Family::Lanes } else { Family::Split });
}
