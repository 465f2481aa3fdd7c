//! `calora prepare`: labelled data as rows.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use calora_models::prepare::{Kind, PrepareOptions, Shape, prepare, to_jsonl};
use calora_models::rows::Row;
use clap::ValueEnum;

use crate::output;

/// `--as`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArg {
    /// {prompt, completion}: trained on, and generated.
    Completions,
    /// {prompt, choices, label}: the likeliest choice is taken.
    Choices,
    /// {text}: plain text.
    Text,
}

const EXAMPLES: &str = "\
Examples:
  calora prepare MODEL --data intents.jsonl --out train.jsonl
  calora prepare MODEL --data messages.csv --as choices --choices ham,spam --out rows.jsonl
  calora prepare MODEL --data questions.tsv --input question --target answer --out rows.jsonl
  calora prepare MODEL --data all.jsonl --holdout 0.1 --out train.jsonl --heldout test.jsonl
  calora prepare MODEL --data novel.txt --holdout 0.15 --out train.jsonl --heldout test.jsonl";

/// Turns labelled data into rows to train and evaluate on: .jsonl with {text, intent or label}, {input, target} or
/// {prompt, completion}; .csv and .tsv with a line of names; .txt as one text.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The model folder, whose chat template and tokenizer shape the prompts.
    model: PathBuf,
    /// The data.
    #[arg(long)]
    data: PathBuf,
    /// The rows to write.
    #[arg(long)]
    out: PathBuf,
    /// Kind of rows; unless told, text for .txt and completions for all else.
    #[arg(long = "as", value_enum)]
    kind: Option<KindArg>,
    /// The field that is asked; text, input, prompt or sentence unless told.
    #[arg(long, value_name = "FIELD")]
    input: Option<String>,
    /// The field that is answered; intent, label, target, completion or output unless told.
    #[arg(long, value_name = "FIELD")]
    target: Option<String>,
    /// All labels in order, separated by commas; others are errors, and a number counts them from 0.
    #[arg(long, value_delimiter = ',', conflicts_with = "labels")]
    choices: Option<Vec<String>>,
    /// The same from a file, one a line.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Instructions before the user's turn.
    #[arg(long)]
    system: Option<String>,
    /// Prompts as they stand in the data, special tokens and all; no chat template.
    #[arg(long, conflicts_with_all = ["system", "template"])]
    raw: bool,
    /// Prompts by a text in which {input} or another {field} stands for the row's; no chat template.
    #[arg(long, conflicts_with = "system")]
    template: Option<String>,
    /// Leave out rows whose input or target is empty, instead of stopping at them.
    #[arg(long)]
    skip_empty: bool,
    /// Tokens of a text row.
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// At most so many rows in each file, drawn by the seed.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// A share of the rows that is written to --heldout instead.
    #[arg(long, value_name = "SHARE", requires = "heldout")]
    holdout: Option<f64>,
    /// The file of the rows that are held out.
    #[arg(long, value_name = "FILE", requires = "holdout")]
    heldout: Option<PathBuf>,
    /// Seed of what is held out and drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.holdout.is_some_and(|share| share <= 0.0) {
        bail!("--holdout needs a share above 0");
    }
    let options = PrepareOptions {
        kind: args.kind.map(|kind| match kind {
            KindArg::Completions => Kind::Completions,
            KindArg::Choices => Kind::Choices,
            KindArg::Text => Kind::Text,
        }),
        shape: match &args.template {
            Some(template) => Shape::Template(template.clone()),
            None if args.raw => Shape::Raw,
            None => Shape::Chat(args.system.clone()),
        },
        input: args.input.clone(),
        target: args.target.clone(),
        labels: labels(args)?,
        skip_empty: args.skip_empty,
        tokens: args.tokens,
        limit: args.limit,
        holdout: args.holdout.unwrap_or_default(),
        seed: args.seed,
    };
    let prepared = prepare(&args.model, &args.data, &options)?;
    if prepared.skipped > 0 {
        output::line(format!("{} empty rows were left out", prepared.skipped))?;
    }
    write(&args.out, &prepared.rows)?;
    args.heldout.iter().try_for_each(|path| write(path, &prepared.heldout))
}

fn labels(args: &Args) -> Result<Option<Vec<String>>> {
    let Some(path) = &args.labels else { return Ok(args.choices.clone()) };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect();
    if names.is_empty() {
        bail!("{}: no labels", path.display());
    }
    Ok(Some(names))
}

fn write(path: &Path, rows: &[Row]) -> Result<()> {
    calora::weights::write_atomically(path, to_jsonl(rows).as_bytes())?;
    output::line(format!("wrote {} ({} rows)", path.display(), rows.len()))
}
