//! The folder of a run: settings, log, plot, teacher's states and checkpoints.
//!
//! ```text
//! RUN/settings.json            what the run depends on; another run is refused here
//! RUN/log.jsonl                one line a step, one an evaluation
//! RUN/loss.svg                 the same to look at
//! RUN/checkpoint-000100/       branches, AdamW's moments, best state so far: safetensors in float32; state.json
//! ```
//!
//! Invariant: a checkpoint is written beside its place and renamed when it is whole, and only then an older one goes; a
//! full disk or a kill leaves the last whole one.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use calora::weights::{SafetensorsFile, write_atomically};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use super::branches::Values;
use super::evaluate::Score;
use super::optimizer::Moments;
use crate::plot::Series;

/// Where a run keeps its things.
pub struct RunFolder {
    path: PathBuf,
}

/// Everything that the next step depends on.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Steps done.
    pub step: usize,
    /// The branches' values.
    pub branches: Vec<Values>,
    /// AdamW's; none before the first step.
    pub moments: Option<Vec<Moments>>,
    /// The best state on the held-out rows.
    pub best: Option<Best>,
    /// The score before the first step.
    pub start: Option<Score>,
}

/// A state that was best so far.
#[derive(Clone, Debug)]
pub struct Best {
    /// After this many steps.
    pub step: usize,
    /// The held-out loss that makes it the best.
    pub loss: f64,
    /// The branches' values.
    pub branches: Vec<Values>,
}

#[derive(Serialize, Deserialize)]
struct State {
    step: usize,
    best: Option<(usize, f64)>,
    start: Option<Score>,
}

impl RunFolder {
    /// Opens or creates the folder; refuses one that holds a run with other settings.
    pub fn open(path: &Path, settings: &serde_json::Value) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| path.display().to_string())?;
        let file = path.join("settings.json");
        match fs::read(&file) {
            Ok(bytes) => {
                let stored: serde_json::Value = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{}: not a run's settings", file.display()))?;
                if stored != *settings {
                    let what = difference(&stored, settings);
                    bail!(
                        "{} holds a run with other settings ({what}); remove it, or name another folder with --run",
                        path.display()
                    );
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                write_atomically(&file, &serde_json::to_vec_pretty(settings)?)?;
            }
            Err(e) => return Err(e).with_context(|| file.display().to_string()),
        }
        Ok(Self { path: path.to_owned() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is anything to go on from.
    pub fn has_checkpoint(&self) -> Result<bool> {
        Ok(!self.checkpoints()?.is_empty())
    }

    /// The newest checkpoint that reads well, with the names of the branches' tensors in order.
    pub fn latest(&self, names: &[String]) -> Result<Option<Checkpoint>> {
        let mut steps = self.checkpoints()?;
        steps.sort_unstable();
        let mut damaged = None;
        for step in steps.into_iter().rev() {
            match read(&self.checkpoint_path(step), names) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) => {
                    log::warn!("checkpoint of step {step}: {error:#}");
                    damaged.get_or_insert(error);
                }
            }
        }
        match damaged {
            Some(error) => {
                Err(error.context("no checkpoint of this run can be read; remove the run's folder"))
            }
            None => Ok(None),
        }
    }

    /// Saves a checkpoint and drops those before the last.
    pub fn save(&self, checkpoint: &Checkpoint, names: &[String]) -> Result<()> {
        let target = self.checkpoint_path(checkpoint.step);
        let temporary = self.path.join(format!(".checkpoint-{:06}", checkpoint.step));
        let write = || -> Result<()> {
            let _ = fs::remove_dir_all(&temporary);
            fs::create_dir_all(&temporary)?;
            write(&temporary, checkpoint, names)?;
            // Moved out of the way in one step: what is removed file by file would be half a checkpoint meanwhile.
            let replaced = self.path.join(".replaced");
            let _ = fs::remove_dir_all(&replaced);
            if target.exists() {
                fs::rename(&target, &replaced)?;
            }
            fs::rename(&temporary, &target)?;
            let _ = fs::remove_dir_all(&replaced);
            Ok(())
        };
        if let Err(error) = write() {
            let _ = fs::remove_dir_all(&temporary);
            return Err(error.context(format!(
                "{}: the checkpoint could not be saved; earlier ones are intact, and the same command goes on from the last",
                target.display()
            )));
        }
        let mut older = self.checkpoints()?;
        older.retain(|step| *step < checkpoint.step);
        older.sort_unstable();
        older.pop();
        for step in older {
            let _ = fs::remove_dir_all(self.checkpoint_path(step));
        }
        Ok(())
    }

    /// Removes checkpoints and the teacher's states: the finished file is written.
    pub fn finish(&self) {
        for step in self.checkpoints().unwrap_or_default() {
            let _ = fs::remove_dir_all(self.checkpoint_path(step));
        }
        for name in ["teacher.f16", "teacher.json"] {
            let _ = fs::remove_file(self.path.join(name));
        }
    }

    /// The log, cut to what was known after `step` steps, ready for more lines.
    pub fn log_from(&self, step: usize) -> Result<Log> {
        let path = self.path.join("log.jsonl");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let known = |line: &&str| {
            let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
            step > 0 && value.and_then(|v| v["step"].as_u64()).is_some_and(|at| at <= step as u64)
        };
        let kept: String = text.lines().filter(known).map(|line| format!("{line}\n")).collect();
        let write = || -> Result<fs::File> {
            write_atomically(&path, kept.as_bytes())?;
            Ok(fs::OpenOptions::new().append(true).open(&path)?)
        };
        Ok(Log { file: write().with_context(|| path.display().to_string())?, path })
    }

    /// Draws the log.
    pub fn plot(&self, title: &str) -> Result<()> {
        let log = self.path.join("log.jsonl");
        let text = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        let values: Vec<serde_json::Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let series = |label: &str, pick: &dyn Fn(&serde_json::Value) -> Option<f64>| Series {
            label: label.to_owned(),
            points: values.iter().filter_map(|v| Some((v["step"].as_f64()?, pick(v)?))).collect(),
        };
        let all = [
            series("training", &|v| v["cross_entropy"].as_f64()),
            series("held-out", &|v| v["heldout"]["loss"].as_f64()),
            series("distance to the teacher", &|v| v["hidden"].as_f64().filter(|d| *d > 0.0)),
        ];
        let drawn: Vec<Series> = all.into_iter().filter(|s| !s.points.is_empty()).collect();
        if drawn.is_empty() {
            return Ok(());
        }
        let svg = crate::plot::lines(title, "step; cross-entropy in nats a token", &drawn);
        write_atomically(&self.path.join("loss.svg"), svg.as_bytes())?;
        Ok(())
    }

    fn checkpoint_path(&self, step: usize) -> PathBuf {
        self.path.join(format!("checkpoint-{step:06}"))
    }

    fn checkpoints(&self) -> Result<Vec<usize>> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.path).with_context(|| self.path.display().to_string())? {
            let name = entry?.file_name();
            let step: Option<usize> =
                name.to_str().and_then(|n| n.strip_prefix("checkpoint-")).and_then(|n| n.parse().ok());
            steps.extend(step);
        }
        Ok(steps)
    }
}

/// A log of JSON lines.
pub struct Log {
    file: fs::File,
    path: PathBuf,
}

impl Log {
    /// Adds one line.
    pub fn line(&mut self, value: &serde_json::Value) -> Result<()> {
        writeln!(self.file, "{value}").with_context(|| self.path.display().to_string())
    }
}

/// The names of the settings that differ.
fn difference(a: &serde_json::Value, b: &serde_json::Value) -> String {
    let names = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default()
    };
    let mut all = names(a);
    all.extend(names(b));
    all.sort();
    all.dedup();
    all.retain(|name| a.get(name) != b.get(name));
    all.join(", ")
}

fn write(folder: &Path, checkpoint: &Checkpoint, names: &[String]) -> Result<()> {
    save(&folder.join("branches.safetensors"), names, &checkpoint.branches)?;
    if let Some(moments) = &checkpoint.moments {
        let (first, second): (Vec<Values>, Vec<Values>) = moments.iter().cloned().unzip();
        save(&folder.join("moment_1.safetensors"), names, &first)?;
        save(&folder.join("moment_2.safetensors"), names, &second)?;
    }
    if let Some(best) = &checkpoint.best {
        save(&folder.join("best.safetensors"), names, &best.branches)?;
    }
    let state = State {
        step: checkpoint.step,
        best: checkpoint.best.as_ref().map(|best| (best.step, best.loss)),
        start: checkpoint.start,
    };
    Ok(write_atomically(&folder.join("state.json"), &serde_json::to_vec_pretty(&state)?)?)
}

fn read(folder: &Path, names: &[String]) -> Result<Checkpoint> {
    let file = folder.join("state.json");
    let state: State = serde_json::from_slice(&fs::read(&file).with_context(|| file.display().to_string())?)
        .with_context(|| file.display().to_string())?;
    let moments = match folder.join("moment_1.safetensors").exists() {
        true => {
            let first = load(&folder.join("moment_1.safetensors"), names)?;
            let second = load(&folder.join("moment_2.safetensors"), names)?;
            Some(first.into_iter().zip(second).collect())
        }
        false => None,
    };
    let best = match state.best {
        Some((step, loss)) => {
            Some(Best { step, loss, branches: load(&folder.join("best.safetensors"), names)? })
        }
        None => None,
    };
    let branches = load(&folder.join("branches.safetensors"), names)?;
    Ok(Checkpoint { step: state.step, branches, moments, best, start: state.start })
}

fn save(path: &Path, names: &[String], values: &[Values]) -> Result<()> {
    let mut views = Vec::new();
    for (name, value) in names.iter().zip(values) {
        let bytes: &[u8] = bytemuck::cast_slice(&value.data);
        views.push((name.as_str(), TensorView::new(Dtype::F32, vec![value.rows, value.cols], bytes)?));
    }
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>)?;
    let mut file = fs::File::create(path)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    Ok(())
}

fn load(path: &Path, names: &[String]) -> Result<Vec<Values>> {
    let file = SafetensorsFile::open(path)?;
    let read = |name: &String| -> Result<Values> {
        let tensor = file.require(name)?;
        let [rows, cols] = tensor.shape[..] else { bail!("{}: {name} is no matrix", path.display()) };
        Ok(Values { rows, cols, data: tensor.to_f32()? })
    };
    names.iter().map(read).collect()
}
