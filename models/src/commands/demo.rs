//! `calora demo`: the main job on the shipped model, without argument or network.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use calora::adapter::{BranchStorage, TaskAdapter};
use calora::engine::BoundAdapter;
use calora::quant::Bits;
use calora::session::{GenerationOptions, SessionOptions};
use calora::weights::ModelFolder;
use calora_models::compress::{CompressOptions, compress};
use calora_models::pack::{PackOptions, TaskDescription, pack};

use super::{LoadArgs, run::print_stream};
use crate::output;

/// Compresses the shipped model, packs its LoRAs as task files, then answers with one task after the other.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder with `base` and `adapters`; the shipped one unless told.
    #[arg(long, default_value = env!("CARGO_MANIFEST_DIR"))]
    models: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
}

/// One task of the demonstration.
struct Task {
    adapter: BoundAdapter,
    name: String,
    description: TaskDescription,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let base = args.models.join("base");
    let scratch = tempfile::tempdir().context("no temporary folder")?;
    let compressed = scratch.path().join("base-int4");

    heading("1  Compress the model once: int4 in groups of 32, as transformers and vLLM read it")?;
    let start = Instant::now();
    compress(&base, &compressed, &CompressOptions::new(Bits::Int4, Some(32)), |_, _| ())?;
    let size =
        |folder: &Path| std::fs::metadata(folder.join("model.safetensors")).map(|m| m.len()).unwrap_or(0);
    output::line(format!(
        "   {} -> {} in {:.2} s (the embedding, which is also the head, stays bf16)",
        output::bytes(size(&base)),
        output::bytes(size(&compressed)),
        start.elapsed().as_secs_f64()
    ))?;

    heading("2  Pack the LoRAs that exist for the original model: one small file a task")?;
    let files = pack_tasks(&args.models.join("adapters"), &base, scratch.path())?;
    for (file, description) in &files {
        let about = description.description.as_deref().unwrap_or_default();
        let bytes = std::fs::metadata(file).map(|m| m.len()).unwrap_or(0);
        output::line(format!("   {:<22} {:>9}   {about}", stem(file), output::bytes(bytes)))?;
    }

    heading("3  Load the compressed model once")?;
    let start = Instant::now();
    let engine = args.load.load(&compressed)?;
    let device = engine.device_info();
    output::line(format!(
        "   {} {}, {} activations, {:.0} ms",
        device.kind,
        device.name,
        format!("{:?}", device.activations).to_lowercase(),
        start.elapsed().as_secs_f64() * 1e3
    ))?;
    let mut tasks = Vec::new();
    for (file, description) in files {
        let start = Instant::now();
        let adapter = engine.open_adapter(&file)?;
        let resident = engine.resident(&[(adapter.clone(), 1.0)])?;
        let first = start.elapsed().as_secs_f64() * 1e6;
        output::line(format!("   {:<22} mapped and resident in {first:.0} us", adapter.name()))?;
        tasks.push((Task { name: adapter.name().to_owned(), adapter, description }, resident));
    }

    heading("4  Swap tasks while the weights stay where they are")?;
    let mut session = engine.session(SessionOptions::default())?;
    // How each task samples stands in its file; the seed makes the demonstration repeatable.
    let options = GenerationOptions { seed: Some(1), max_tokens: Some(48), ..GenerationOptions::default() };
    let mut swaps = Vec::new();
    let (mut tokens, mut seconds) = (0, 0.0);
    for round in 0..2 {
        for (task, _) in &tasks {
            let Some(prompt) = task.description.examples.get(round) else { continue };
            let start = Instant::now();
            session.switch_to(&[(task.adapter.clone(), 1.0)])?;
            let swap = start.elapsed().as_secs_f64() * 1e6;
            swaps.push(swap);
            session.reset();
            output::line(format!("\n   [{} - swapped in {swap:.0} us] {}", task.name, prompt.trim_end()))?;
            output::piece("   > ")?;
            let usage = print_stream(session.respond(prompt, &options)?)?;
            tokens += usage.output_tokens;
            seconds += usage.output_tokens as f64 / usage.decode_tokens_per_second.max(f64::MIN_POSITIVE);
        }
    }

    heading("5  Without a task the same model only continues text")?;
    session.switch_to(&[])?;
    session.reset();
    if let Some(prompt) = tasks.first().and_then(|(t, _)| t.description.examples.first()) {
        output::line(format!("   [no task] {prompt}"))?;
        output::piece("   > ")?;
        print_stream(
            session.respond(prompt, &GenerationOptions { max_tokens: Some(24), ..options.clone() })?,
        )?;
    }

    heading(
        "6  CA-LoRA: the same model at 2 bits, where an untouched LoRA suffers and an adapted task does not",
    )?;
    adapted(args, &base, scratch.path(), &options)?;

    swaps.sort_by(f64::total_cmp);
    let median = swaps.get(swaps.len() / 2).copied().unwrap_or_default();
    let memory = engine.memory();
    heading("That was")?;
    output::line(format!(
        "   {} tasks on one model of {}, adapters {} together; a swap took {median:.0} us (median of {}), decoding ran at {:.0} tokens/s.",
        tasks.len(),
        output::bytes(memory.weights),
        output::bytes(memory.tails),
        swaps.len(),
        tokens as f64 / seconds.max(f64::MIN_POSITIVE)
    ))?;
    output::line("   Next: calora compress, calora pack and calora run on a model of your own (README.md).")
}

/// One task at 2 bits, as it was and as `calora adapt` repaired it.
fn adapted(args: &Args, base: &Path, scratch: &Path, options: &GenerationOptions) -> Result<()> {
    let file = args.models.join("adapted/clean-question-int2.safetensors");
    if !file.exists() {
        return output::line(format!("   left out: {} is not there", file.display()));
    }
    let compressed = scratch.join("base-int2");
    compress(base, &compressed, &CompressOptions::new(Bits::Int2, Some(32)), |_, _| ())?;
    let engine = args.load.load(&compressed)?;
    let untouched = engine.open_adapter(scratch.join("clean-question.safetensors"))?;
    let repaired = engine.open_adapter(&file)?;
    let description = TaskDescription::read(&args.models.join("adapters/clean-question"))?;
    let mut session = engine.session(SessionOptions::default())?;
    for prompt in description.examples.iter().take(2) {
        output::line(format!("\n   {prompt}"))?;
        for (what, adapter) in [("untouched", &untouched), ("adapted  ", &repaired)] {
            session.switch_to(&[(adapter.clone(), 1.0)])?;
            session.reset();
            output::piece(&format!("   {what} > "))?;
            print_stream(session.respond(prompt, options)?)?;
        }
    }
    output::line(
        "\n   On 1,000 held-out questions (models/adapted): exact 8.0 % untouched, 45.5 % adapted, 48.7 % uncompressed.",
    )
}

fn heading(text: &str) -> Result<()> {
    output::line(format!("\n{text}"))
}

fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned())
}

/// Packs every PEFT folder below `adapters`; the files come in the order of their names.
fn pack_tasks(adapters: &Path, base: &Path, out: &Path) -> Result<Vec<(PathBuf, TaskDescription)>> {
    let folder = ModelFolder::open(base)?;
    let recipe = calora::arch::recipe(folder.config(), folder.config_path())?;
    let ids = folder.ids()?;
    let entries = std::fs::read_dir(adapters).with_context(|| adapters.display().to_string())?;
    let mut folders: Vec<PathBuf> =
        entries.collect::<Result<Vec<_>, _>>()?.into_iter().map(|e| e.path()).collect();
    folders.retain(|f| f.join("adapter_config.json").exists());
    folders.sort();
    let options = PackOptions { name: None, weights: Vec::new(), storage: BranchStorage::F16 };
    folders
        .iter()
        .map(|folder| {
            let file = out.join(stem(folder)).with_extension("safetensors");
            pack(&[TaskAdapter::open(folder)?], &recipe, &ids, &file, &options)?;
            Ok((file, TaskDescription::read(folder)?))
        })
        .collect()
}
