//! Adapters that come, go and act more and less strongly.

use super::*;

#[test]
fn attach_swap_and_detach_are_exact() {
    for (store, model) in models() {
        let a = random_tail(&model.recipe, 4, 0, DType::F16, 7);
        let b = random_tail(&model.recipe, 0, 6, DType::F32, 8);
        for activations in [Activations::F32, Activations::Int8] {
            let options = options(activations);
            let (plain, fresh_a) =
                (run(&model, &options, None, &PROMPT), run(&model, &options, Some(&a), &PROMPT));
            let mut device = CpuDevice::new(&model, options).unwrap();
            let (a, b) = (device.load_tail(&a).unwrap(), device.load_tail(&b).unwrap());
            let mut with = |tail| {
                let cache = device.create_cache(19).unwrap();
                let logits = forward(&mut device, cache, tail, &PROMPT);
                device.drop_cache(cache);
                logits
            };
            assert!(with(Some(a)) == fresh_a, "{store:?}");
            let with_b = with(Some(b));
            assert!(nmse(&with_b, &fresh_a) > 1e-4 && nmse(&with_b, &plain) > 1e-4, "{store:?}");
            assert!(with(Some(a)) == fresh_a, "{store:?}: A after B");
            assert!(with(None) == plain, "{store:?}: detached");
            assert!(nmse(&fresh_a, &plain) > 1e-4, "{store:?}: the adapter does nothing");
        }
    }
}

/// All logits of a fresh device with adapters side by side.
fn run_scaled(
    model: &Model,
    options: &CpuOptions,
    tails: &[&Tail],
    scales: &[f32],
) -> Result<Vec<f32>, Error> {
    let mut device = CpuDevice::new(model, options.clone())?;
    let cache = device.create_cache(32)?;
    let tail = Some(device.load_tails(tails)?);
    let pass = Forward { tokens: &PROMPT, position: 0, cache, tail, scales, want: Want::AllLogits };
    match device.forward(&pass)? {
        Answer::Logits(logits) => Ok(logits),
        other => panic!("expected logits, got {other:?}"),
    }
}

#[test]
fn scales_are_factors_of_the_pass() {
    for (store, model) in models().into_iter().take(3) {
        let a = random_tail(&model.recipe, 4, 5, DType::F16, 7);
        let b = random_tail(&model.recipe, 11, 0, DType::BF16, 8);
        for activations in [Activations::F32, Activations::Int8] {
            let options = options(activations);
            let scaled =
                |tails: &[&Tail], scales: &[f32]| run_scaled(&model, &options, tails, scales).unwrap();
            let alone = |tail: &Tail| run(&model, &options, Some(tail), &PROMPT);
            let plain = run(&model, &options, None, &PROMPT);
            assert!(scaled(&[&a], &[1.0]) == alone(&a), "{store:?}: 1 is attached");
            assert!(scaled(&[&a, &b], &[]) == scaled(&[&a, &b], &[1.0, 1.0]), "{store:?}");
            assert!(scaled(&[&a, &b], &[0.0, -0.0]) == plain, "{store:?}: 0 is detached");
            assert!(scaled(&[&a, &b], &[1.0, 0.0]) == alone(&a), "{store:?}: A without B");
            assert!(scaled(&[&a, &b], &[0.0, 1.0]) == alone(&b), "{store:?}: B without A");
            // A scale multiplies what comes after the activation, as a branch's own scaling does.
            let mut faded = a.clone();
            faded.branches.iter_mut().flatten().for_each(|branch| branch.scaling *= 0.3);
            let third = scaled(&[&a, &b], &[0.3, 1.0]);
            assert!(third == scaled(&[&faded, &b], &[]), "{store:?}: a scale is a factor");
            let whole = scaled(&[&a, &b], &[]);
            assert!(nmse(&third, &whole) > 1e-5 && nmse(&third, &alone(&b)) > 1e-5, "{store:?}");
            // Ranks side by side: both act.
            assert!(nmse(&whole, &alone(&a)) > 1e-4 && nmse(&whole, &alone(&b)) > 1e-4, "{store:?}");
            for (tails, scales) in [
                (&[&a, &b][..], &[1.0][..]),
                (&[&a][..], &[1.0, 1.0][..]),
                (&[&a][..], &[f32::NAN][..]),
                (&[&a; 13][..], &[][..]),
            ] {
                let refused = run_scaled(&model, &options, tails, scales);
                assert!(matches!(refused, Err(Error::InvalidOption { .. })), "{} {scales:?}", tails.len());
            }
            assert!(scaled(&[&a; 12], &[0.0; 12]) == plain, "twelve fit");
        }
    }
}

/// A branch whose ranks are more than are widened at once, and one whose rows are.
#[test]
fn wide_branches_are_the_sum_of_narrow_ones() {
    let model = one_linear(&mut Random(31), 70, 64, Store::F32);
    let mut rng = Random(32);
    for rank in [1, 7, 8, 9, 17, 1024, 1031, 2500] {
        let branch = random_branch(&mut rng, BranchKind::Lora, (70, 64), rank, DType::F16, 0.5);
        let tail = Tail { branches: vec![vec![branch.clone()]] };
        let tokens = [0, 5, 16, 7, 2];
        let logits = run(&model, &options(Activations::F32), Some(&tail), &tokens);
        for (token, actual) in tokens.iter().zip(logits.chunks(70)) {
            let alone = run(&model, &options(Activations::F32), Some(&tail), &[*token]);
            assert!(alone == actual, "rank {rank}: a token's sum does not depend on its neighbours");
            let expected = reference(&model, std::slice::from_ref(&branch), *token as usize, false);
            let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let worst =
                actual.iter().zip(&expected).fold(0.0f64, |m, (a, e)| m.max((f64::from(*a) - e).abs()));
            assert!(worst <= 2e-5 * largest, "rank {rank}: {worst:e} of {largest}");
        }
    }
}
