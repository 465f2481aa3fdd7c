//! Several responses advanced by one pass of the device: base weights are read once for all of them.
//!
//! Invariant: who shares a pass changes nothing that a response gives; sampling, stopping and recovery stay each session's
//! own. A batch that fails has changed no session.

use std::sync::Arc;
use std::time::Instant;

use super::Session;
use super::cache::Ready;
use super::generation::{Generation, Progress};
use crate::device::{Answer, Forward};
use crate::error::{Error, Result};

/// Advances responses of one engine, each with the session that began it, by **one** pass of the device.
///
/// If the first is decoding, every other that is decoding shares its pass, whatever its adapters and position; at most as
/// many as the engine's `prefill_chunk`. Otherwise (a prompt, or a lost device that is brought to where it was) the first
/// makes its pass alone, as it does where a batch finds no room. `None` for those whose turn it was not: they are as they
/// were. A caller that puts those first the next time is fair.
///
/// Results are what [`Generation::pass`] gives: on the CPU and on software Vulkan bit for bit. On a GPU the kernels for one row
/// and for several take their sums in the same order, so that only a compiler that fuses other products with sums can make
/// a difference, in the last bit.
pub fn pass_together(members: &mut [(&mut Generation, &mut Session)]) -> Vec<Option<Result<Progress>>> {
    let mut results: Vec<_> = members.iter().map(|_| None).collect();
    if !pass_batch(members, &mut results)
        && let Some((generation, session)) = members.first_mut()
    {
        results[0] = Some(generation.pass(session));
    }
    results
}

/// One pass for all that are ready; whether there were several and the pass was made.
fn pass_batch(
    members: &mut [(&mut Generation, &mut Session)],
    results: &mut [Option<Result<Progress>>],
) -> bool {
    let Some(shared) = members.first().map(|(_, session)| session.shared.clone()) else { return false };
    let mut batch: Vec<usize> = Vec::new();
    let (mut tokens, mut ready) = (Vec::new(), Vec::<(_, Ready)>::new());
    for (i, (generation, session)) in members.iter().enumerate() {
        if batch.len() == shared.prefill_chunk || !Arc::ptr_eq(&session.shared, &shared) {
            continue;
        }
        match generation.ready(session) {
            Some((token, want, r)) if ready.first().is_none_or(|(_, first)| first.epoch == r.epoch) => {
                batch.push(i);
                tokens.push([token]);
                ready.push((want, r));
            }
            None if i == 0 => return false,
            _ => {}
        }
    }
    if batch.len() < 2 {
        return false;
    }
    let begun = Instant::now();
    let passes: Vec<Forward<'_>> = tokens
        .iter()
        .zip(&ready)
        .map(|(tokens, (want, r))| Forward {
            tokens,
            position: r.position,
            cache: r.cache,
            tail: r.tail.as_ref().map(|(tail, _)| *tail),
            scales: r.tail.as_ref().map_or(&[], |(_, list)| &list.scales),
            want: *want,
        })
        .collect();
    let answers: Vec<Result<Answer>> = match shared.forward(ready[0].1.epoch, &passes) {
        Ok(answers) => answers.unwrap_or_default().into_iter().map(Ok).collect(),
        Err(error) => match batch.iter().map(|_| copy_of_loss(&error).map(Err)).collect() {
            Some(losses) => losses,
            None => return false,
        },
    };
    let mut answers = answers.into_iter();
    for (i, [token]) in batch.into_iter().zip(tokens) {
        let (generation, session) = &mut members[i];
        let answer = answers.next().transpose();
        let result = generation.scaled(session, |generation, session| {
            session.or_recover(answer).and_then(|answer| match answer {
                Some(answer) => {
                    session.cache.append(&[token], session.adapters.as_ref());
                    generation.go_on(session, answer, begun)
                }
                None => Ok(generation.recovering()),
            })
        });
        results[i] = Some(generation.or_roll_back(session, result));
    }
    true
}

/// A loss of the device is every session's; any other failure is found again, and told, by the one that it concerns.
fn copy_of_loss(error: &Error) -> Option<Error> {
    match error {
        Error::DeviceLost { reason } => Some(Error::DeviceLost { reason: reason.clone() }),
        Error::Gpu { what, reason } => Some(Error::Gpu { what: what.clone(), reason: reason.clone() }),
        _ => None,
    }
}
