//! `calora adapt`: an existing LoRA on a compressed model, repaired. CA-LoRA's three parts, each of which can be left
//! out: inheritance (begin from the LoRA), recovery (a branch beside every linear), distillation (from the uncompressed
//! model with the LoRA).
//!
//! Without a LoRA it makes a base recovery: branches that repair the compressed model itself, on general text, beside
//! which any LoRA of the uncompressed model runs untouched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::DType;
use calora::adapter::{AdapterInfo, BranchKind, BranchStorage, Tail, write_task_file};
use calora::arch::LinearId;
use calora::device::Model;
use serde_json::json;

use super::branches::{Branches, Values};
use super::checkpoint::RunFolder;
use super::data::{Example, Order, digest};
use super::device::{self, DeviceChoice};
use super::frozen::Frozen;
use super::loss::LossWeights;
use super::memory::largest_batch;
use super::options::TrainOptions;
use super::report::Report;
use super::run::{Event, Job, TeacherSource, train};
use super::setup::{Base, check_pair, layer_linears};
use super::teacher::{TeacherKey, TeacherStates};
use super::{export, start};
use crate::calibrate::Calibration;
use crate::pack::TaskDescription;
use crate::residual::gelu_factors;
use crate::rows;

/// How a recovery branch begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// It changes nothing.
    Zero,
    /// Low-rank factors of `W - Q(W)`, weighted by the inputs of calibration rows.
    #[default]
    Residual,
}

/// What stands between the two matrices of a recovery branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovery {
    /// GELU, as in the paper.
    #[default]
    Gelu,
    /// Nothing: the branch folds into a LoRA.
    Linear,
}

/// What to adapt.
#[derive(Clone, Debug)]
pub struct AdaptJob {
    /// The uncompressed model.
    pub base: PathBuf,
    /// The compressed one.
    pub compressed: PathBuf,
    /// The LoRA; none for a base recovery.
    pub lora: Option<PathBuf>,
    /// Training rows.
    pub data: PathBuf,
    /// Rows for evaluation.
    pub heldout: Option<PathBuf>,
    /// Only the first of them.
    pub heldout_limit: Option<usize>,
    /// Rows whose inputs weigh the residual; by default the training rows.
    pub calibration: Option<PathBuf>,
    /// The task file to write, or with `fold` a PEFT folder.
    pub out: PathBuf,
    /// Write one plain LoRA that PEFT loads.
    pub fold: bool,
    /// Begin from the LoRA; else from a fresh one of its shape.
    pub inherit: bool,
    /// Recovery branches, and their rank where not the default for the model's width.
    pub recovery: Option<(Recovery, Option<usize>)>,
    /// How they begin.
    pub init: Init,
    /// Distillation.
    pub distill: LossWeights,
    /// The task's name.
    pub name: Option<String>,
    /// Where checkpoints, log and plot go.
    pub run: PathBuf,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Steps and so on; 0 steps is the training-free state.
    pub options: TrainOptions,
}

/// Calibration tokens that weigh the residual.
const CALIBRATION_TOKENS: usize = 16_384;
/// Which of the rows: the same for every seed of training.
const CALIBRATION_SEED: u64 = 0x00ca_110a;

/// Adapts and writes a task file.
pub fn adapt(job: &AdaptJob, progress: &mut dyn FnMut(Event)) -> Result<Report> {
    job.options.check()?;
    check(job)?;
    let base = Base::open(&job.base)?;
    let compressed = Base::open(&job.compressed)?;
    check_pair(&base, &compressed)?;
    let lora = job.lora.as_ref().map(|path| base.lora(path)).transpose()?;
    let recipe = &compressed.recipe;
    let encoder = compressed.encoder(job.options.max_length);
    let (examples, left_out) = encoder.training(&rows::read(&job.data, None)?, &job.data)?;
    let heldout = job.heldout.as_ref().map(|path| rows::read(path, job.heldout_limit)).transpose()?;

    let device = device::open(job.device)?;
    let (dtype, seed) = (DType::F32, job.options.seed);
    let place = (&device, dtype);
    let original = match &lora {
        Some((_, tail)) => Branches::from_tail(tail, &device, dtype)?,
        None => Branches::none(recipe.linears.len()),
    };
    let settings = settings(job, (&base, &compressed), &original, &examples)?;
    let folder = RunFolder::open(&job.run, &settings)?;

    let mut branches = match job.inherit {
        true => original.clone(),
        false => start::like(recipe, &original, seed, place),
    };
    if let Some((kind, rank)) = job.recovery {
        let rank = rank.unwrap_or_else(|| start::default_rank(recipe));
        let linears = layer_linears(recipe);
        let branch_kind = match kind {
            Recovery::Gelu => BranchKind::Recovery,
            Recovery::Linear => BranchKind::LinearRecovery,
        };
        let factors = match job.init {
            Init::Zero => BTreeMap::new(),
            // A checkpoint holds what became of the start.
            Init::Residual if folder.has_checkpoint()? => BTreeMap::new(),
            Init::Residual => {
                let lora = lora.as_ref().map(|(_, tail)| tail);
                residual((job, &examples), (&base, &compressed), lora, &linears, (kind, rank), progress)?
            }
        };
        start::add_recovery(&mut branches, recipe, &linears, (branch_kind, rank), factors, seed, place);
    }
    if branches.is_empty() {
        bail!("--no-recover without --lora leaves nothing to train");
    }

    let (tokens, memory) = (largest_batch(&examples, job.options.batch), job.options.memory);
    let teacher_model = base.frozen(&device, dtype, tokens, memory)?;
    let teacher = match job.distill.distills() && job.options.steps > 0 {
        true => {
            let made_from = json!([base.id(), original.digest()?, digest(&examples)?]).to_string();
            let states = teacher_states(
                (job, &folder, made_from),
                (&teacher_model, &original),
                &examples,
                &mut |done, all| progress(Event::Teacher(done, all)),
            )?;
            teacher_model.forget();
            Some(TeacherSource { states, model: &teacher_model, branches: &original })
        }
        false => None,
    };
    let frozen = compressed.frozen(&device, dtype, tokens, memory)?;
    let outcome = train(
        Job {
            model: &frozen,
            branches,
            examples: &examples,
            heldout: heldout.as_ref().map(|rows| (rows.as_slice(), encoder)),
            weights: job.distill,
            options: &job.options,
            folder: Some(&folder),
        },
        teacher,
        progress,
    )?;
    let bytes = write(job, &compressed, lora.as_ref().map(|l| l.0.info()), &outcome.branches)?;
    folder.finish();
    Ok(Report::new(&outcome, job.options.steps, (examples.len(), left_out), bytes))
}

/// Options that contradict each other.
fn check(job: &AdaptJob) -> Result<()> {
    if job.lora.is_none() && !job.inherit {
        bail!("--no-inherit needs --lora, whose shape the new LoRA has and which teaches it");
    }
    if job.fold && matches!(job.recovery, Some((Recovery::Gelu, _))) {
        bail!("--fold needs --recovery linear: a GELU does not fold into a LoRA");
    }
    if let Some((kind, Some(rank))) = job.recovery {
        if rank == 0 {
            bail!("--recovery-rank 0: expected at least 1; --no-recover leaves recovery out");
        }
        if kind == Recovery::Gelu && job.init == Init::Residual && rank % 2 == 1 {
            bail!(
                "--recovery-rank {rank}: a GELU branch that begins from the residual has mirrored pairs; expected an even rank"
            );
        }
    }
    for weight in [job.distill.hidden, job.distill.logits] {
        if !(weight.is_finite() && weight >= 0.0) {
            bail!("--lambda {weight}: expected 0 or a positive number");
        }
    }
    Ok(())
}

/// What a run depends on; another run does not go on from its checkpoints.
fn settings(
    job: &AdaptJob,
    (base, compressed): (&Base, &Base),
    lora: &Branches,
    examples: &[Example],
) -> Result<serde_json::Value> {
    let recovery = job.recovery.map(|(kind, rank)| format!("{kind:?} {rank:?}"));
    Ok(json!({
        "command": "adapt", "base": base.id(), "compressed": compressed.id(), "lora": lora.digest()?,
        "data": digest(examples)?, "heldout": job.heldout, "heldout_limit": job.heldout_limit,
        "calibration": job.calibration, "inherit": job.inherit, "recovery": recovery,
        "init": format!("{:?}", job.init), "distill": job.distill, "options": job.options,
    }))
}

/// The teacher's states of the examples that training will see.
fn teacher_states(
    (job, folder, made_from): (&AdaptJob, &RunFolder, String),
    (model, branches): (&Frozen, &Branches),
    examples: &[Example],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<TeacherStates> {
    let options = &job.options;
    let seen = options.steps * options.batch * options.accumulate;
    let mut used = Order::new(examples.len(), options.seed).indices(0, seen.min(examples.len()));
    used.sort_unstable();
    used.dedup();
    let key = TeacherKey { made_from, examples: used };
    TeacherStates::open_or_compute(folder.path(), &key, model, branches, examples, progress)
}

/// For each linear the factors of its residual, as a recovery branch (down, up). The inputs that weigh it are the
/// teacher's: those of the uncompressed model with the LoRA.
fn residual(
    (job, examples): (&AdaptJob, &[Example]),
    (base, compressed): (&Base, &Base),
    lora: Option<&Tail>,
    linears: &[LinearId],
    (kind, rank): (Recovery, usize),
    progress: &mut dyn FnMut(Event),
) -> Result<BTreeMap<LinearId, (Values, Values)>> {
    let recipe = &compressed.recipe;
    let sequences = calibration_sequences(job, compressed, examples)?;
    let model = Model { recipe: base.recipe.clone(), weights: base.weights.clone() };
    let mut calibration = Calibration::new(&model, lora, &sequences, Some(rayon::current_num_threads()))?;
    let wanted = |path: &str| recipe.linear(path).is_some_and(|id| linears.contains(&id));
    let (mut factors, mut done) = (BTreeMap::new(), 0);
    // Stage by stage: the moments of a whole large model would not fit in memory.
    while let Some(moments) = calibration.next(&wanted)? {
        for id in moments.paths().filter_map(|path| recipe.linear(path)) {
            let of = |side: &Base| side.weights.matrices[recipe.linears[id.0].matrix.0].to_f32();
            let (rows, cols) = recipe.linear_shape(id);
            let lost: Vec<f32> = of(base)?.iter().zip(of(compressed)?).map(|(w, q)| w - q).collect();
            let moment = moments.get(&recipe.linears[id.0].path);
            let found = match kind {
                Recovery::Gelu => gelu_factors(&lost, rows, moment.as_deref(), rank)?,
                Recovery::Linear => crate::residual::factors(&lost, rows, moment.as_deref(), rank)?,
            };
            let down = Values { rows: found.rank, cols, data: found.down };
            let up = Values { rows, cols: found.rank, data: found.up };
            factors.insert(id, (down, up));
        }
        done += 1;
        progress(Event::Calibration(done, calibration.stages()));
    }
    Ok(factors)
}

/// Some thousand tokens of the calibration rows, or of the training rows, in an order of their own: files are often
/// sorted by label.
fn calibration_sequences(job: &AdaptJob, model: &Base, examples: &[Example]) -> Result<Vec<Vec<u32>>> {
    let own = match &job.calibration {
        Some(path) => Some(model.encoder(job.options.max_length).training(&rows::read(path, None)?, path)?.0),
        None => None,
    };
    let examples = own.as_deref().unwrap_or(examples);
    let (mut sequences, mut tokens) = (Vec::new(), 0);
    for index in Order::new(examples.len(), CALIBRATION_SEED).indices(0, examples.len()) {
        if tokens >= CALIBRATION_TOKENS {
            break;
        }
        let ids = examples[index].inputs();
        tokens += ids.len();
        sequences.push(ids.to_vec());
    }
    Ok(sequences)
}

/// Writes the task file or the folded LoRA; returns the bytes of its branches.
fn write(job: &AdaptJob, compressed: &Base, lora: Option<&AdapterInfo>, branches: &Branches) -> Result<u64> {
    let recipe = &compressed.recipe;
    if job.fold {
        export::peft(&job.out, recipe, branches, &job.compressed)?;
        return Ok(4 * branches.parameters() as u64);
    }
    let described = job.lora.as_deref().map(TaskDescription::read).transpose()?.unwrap_or_default();
    let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let name = job.name.clone().or(described.name.clone()).or_else(|| lora.map(|l| l.name.clone()));
    let name = name.or_else(|| stem(&job.out)).context("--out names no file")?;
    let info = described.info(name);
    let modules = branches.modules(recipe)?;
    write_task_file(&job.out, &info, compressed.id(), &modules, BranchStorage::F16)?;
    Ok(calora::adapter::TaskAdapter::open(&job.out)?.byte_len() as u64)
}
