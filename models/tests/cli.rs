//! The command line as a contract: JSON on stdout, errors on stderr with a non-zero code, and what each command does.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "cli/bench.rs"]
mod bench;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn models(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).to_str().unwrap().to_owned()
}

fn calora(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_calora")).args(arguments).output().unwrap()
}

/// Runs a command that must succeed; its stdout.
fn ok(arguments: &[&str]) -> String {
    let output = calora(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} failed: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&ok(arguments)).unwrap()
}

/// Runs a command that must fail; its stderr.
fn fails(arguments: &[&str]) -> String {
    let output = calora(arguments);
    assert!(!output.status.success(), "{arguments:?} did not fail");
    assert!(output.stdout.is_empty(), "{arguments:?} printed a result before it failed");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// The shipped base as int4, and its intent LoRA as a task file.
struct Work {
    folder: tempfile::TempDir,
}

impl Work {
    fn new() -> Self {
        let work = Self { folder: tempfile::tempdir().unwrap() };
        ok(&["compress", &models("base"), &work.path("int4"), "--scheme", "int4"]);
        let intent = models("adapters/intent");
        ok(&["pack", &intent, "--base", &models("base"), "--out", &work.path("intent.safetensors")]);
        work
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn compress_pack_run_swap() {
    let work = Work::new();
    let (model, task) = (work.path("int4"), work.path("intent.safetensors"));
    let prompt = "wake me with some quiet piano music";
    for device in ["cpu", "gpu"] {
        let run = |extra: &[&str]| {
            let common =
                ["run", &model, "--prompt", prompt, "--max-tokens", "12", "--device", device, "--json"];
            json(&[&common[..], extra].concat())
        };
        let (plain, adapted) = (run(&[]), run(&["--adapter", &task]));
        assert_eq!(adapted["text"], "PlayMusic", "{device}: {adapted}");
        assert_ne!(plain["text"], adapted["text"], "{device}");
        assert!(adapted["usage"]["output_tokens"].as_u64().unwrap() > 0);
        // A scale of 0 is no adapter.
        assert_eq!(run(&["--adapter", &format!("{task}=0")])["text"], plain["text"], "{device}");
        // The folder and the file are the same task.
        assert_eq!(run(&["--adapter", &models("adapters/intent")])["text"], "PlayMusic", "{device}");
    }
    let streamed = ok(&["run", &model, "--prompt", prompt, "--adapter", &task, "--device", "cpu"]);
    assert_eq!(streamed.trim(), "PlayMusic");
}

#[test]
fn eval_scores_every_kind_of_row() {
    let work = Work::new();
    let (model, task) = (work.path("int4"), work.path("intent.safetensors"));
    let rows = work.path("rows.jsonl");
    let prompt = |text: &str| format!("<|user|>{text}<|assistant|>");
    let eval = |text: &str, extra: &[&str]| {
        std::fs::write(&rows, text).unwrap();
        let common = ["eval", &model, "--data", &rows, "--device", "cpu", "--json"];
        json(&[&common[..], extra].concat())
    };
    let completion =
        serde_json::json!({"prompt": prompt("play some jazz"), "completion": "PlayMusic"}).to_string();
    assert_eq!(eval(&completion, &["--adapter", &task])["exact_match"], 1.0);
    assert_eq!(eval(&completion, &[])["exact_match"], 0.0);
    let choices = ["GetWeather", "PlayMusic", "BookRestaurant"];
    let choice =
        serde_json::json!({"prompt": prompt("will it rain in Rome"), "choices": choices, "label": 0});
    assert_eq!(eval(&choice.to_string(), &["--adapter", &task])["accuracy"], 1.0);
    let wrong = serde_json::json!({"prompt": prompt("will it rain in Rome"), "choices": choices, "label": 1});
    let each = work.path("each.jsonl");
    eval(&format!("{choice}\n{wrong}\n"), &["--adapter", &task, "--rows-out", &each]);
    assert_eq!(std::fs::read_to_string(&each).unwrap(), "{\"right\":true}\n{\"right\":false}\n");
    let text = serde_json::json!({"text": "The old man went down to the sea."}).to_string();
    let result = eval(&text, &[]);
    let (loss, perplexity) = (result["loss"].as_f64().unwrap(), result["perplexity"].as_f64().unwrap());
    assert!((loss.exp() - perplexity).abs() < 1e-6 && loss > 1.0 && loss < 8.0, "{result}");
}

#[test]
fn logits_are_written_in_the_reference_mode() {
    let work = Work::new();
    let out = work.path("logits.safetensors");
    ok(&["logits", &work.path("int4"), "--ids", "1,5,9,33", "--out", &out, "--device", "cpu"]);
    let bytes = std::fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("logits").unwrap().shape(), [4, 4096]);
    let f32_mode = bytes;
    let arguments = ["--activations", "f32"];
    ok(&[
        &["logits", &work.path("int4"), "--ids", "1,5,9,33", "--out", &out, "--device", "cpu"][..],
        &arguments,
    ]
    .concat());
    assert_eq!(std::fs::read(&out).unwrap(), f32_mode);
    ok(&[
        "logits",
        &work.path("int4"),
        "--ids",
        "1,5,9,33",
        "--out",
        &out,
        "--device",
        "cpu",
        "--activations",
        "int8",
    ]);
    assert_ne!(std::fs::read(&out).unwrap(), f32_mode);
}

#[test]
fn inspect_and_devices() {
    let work = Work::new();
    let model = json(&["inspect", &work.path("int4"), "--json"]);
    assert_eq!(model["schemes"]["int4 g32"]["matrices"], 42, "{model}");
    let source = json(&["inspect", &models("base"), "--json"]);
    assert_eq!(model["source_id"], source["source_id"]);
    assert!(model["compressed_id"].is_string() && source["compressed_id"].is_null());
    let task = json(&["inspect", &work.path("intent.safetensors"), "--base", &work.path("int4"), "--json"]);
    assert_eq!((&task["base"], &task["coverage"]["touched"]), (&source["source_id"], &Value::from(42)));
    assert_eq!(task["coverage"]["base"], "matched");
    let devices = json(&["devices", "--json"]);
    assert!(devices["cpu"]["threads"].as_u64().unwrap() > 0);
    assert!(!devices["gpus"].as_array().unwrap().is_empty(), "no GPU, not even software Vulkan");
    assert!(devices["self_tests"].is_null());
}

/// What a developer asks the owner of a strange phone for.
#[test]
fn devices_with_a_self_test() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().to_str().unwrap();
    let common = ["devices", "--self-test", "--json", "--folder", kept];
    let first = json(&[&common[..], &["--seconds", "0.5"]].concat());
    let first = &first["self_tests"][0];
    assert!(first["untested"].as_u64().unwrap() > 0, "half a second is too short: {first}");
    let tried = first["kernels"].as_array().unwrap().len();
    assert_eq!(
        (first["passed"].as_u64(), first["failed"].as_u64()),
        (Some(tried as u64), Some(0)),
        "{first}"
    );
    let whole = json(&[&common[..], &["--seconds", "300"]].concat());
    let whole = &whole["self_tests"][0];
    assert_eq!((whole["kept"].as_u64(), whole["untested"].as_u64()), (Some(tried as u64), Some(0)));
    let kernels = whole["kernels"].as_array().unwrap();
    assert!(kernels.len() > tried && kernels.iter().any(|k| k["chosen"] == true), "{whole}");
    let none = json(&["devices", "--self-test", "--gpu", "no such GPU", "--json"]);
    assert_eq!(none["self_tests"].as_array().unwrap().len(), 0);
    let text = calora(&["devices", "--self-test", "--folder", kept]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains(&format!("{} kernels pass, 0 fail", kernels.len())), "{text}");
}

#[test]
fn a_plan_says_what_loading_takes_and_what_fits() {
    let work = Work::new();
    let model = work.path("int4");
    let common = ["plan", &model, "--device", "cpu", "--adapter-budget", "6MiB", "--prefix-budget", "0"];
    let plan = |more: &[&str]| json(&[&common[..], more, &["--json"]].concat());
    let whole = plan(&[]);
    let number = |plan: &Value, field: &str| plan[field].as_u64().unwrap();
    let total = number(&whole, "total_bytes");
    let parts =
        ["weight_bytes", "copy_bytes", "cache_bytes", "adapter_bytes", "prefix_bytes", "scratch_bytes"];
    assert_eq!(parts.iter().map(|part| number(&whole, part)).sum::<u64>(), total, "{whole}");
    assert_eq!((number(&whole, "adapter_bytes"), number(&whole, "context_size")), (6 << 20, 512));
    assert_eq!((&whole["fits"], &whole["kind"]), (&true.into(), &"cpu".into()));
    let three = plan(&["--sessions", "3", "--context", "64"]);
    assert_eq!(number(&three, "cache_bytes") * 8, number(&whole, "cache_bytes") * 3);

    let tight = (total - 1).to_string();
    let refused = plan(&["--memory", &tight]);
    assert_eq!((&refused["fits"], &refused["available_bytes"]), (&false.into(), &(total - 1).into()));
    let fitting = number(&refused, "fitting_context").to_string();
    assert_eq!(plan(&["--memory", &tight, "--context", &fitting])["fits"], true);
    let shrunk = plan(&["--memory", &tight, "--shrink"]);
    assert!(number(&shrunk, "total_bytes") < total && shrunk["fits"] == true, "{shrunk}");
    let table = ok(&[&common[..], &["--memory", &tight]].concat());
    assert!(table.contains("it does not fit") && table.contains(&fitting), "{table}");

    let run = ["run", &model, "--prompt", "Hello", "--max-tokens", "1", "--device", "cpu"];
    let error = fails(&[&run[..], &["--memory", "2MB"]].concat());
    assert!(error.contains("2000000 are available") && error.contains("weights"), "{error}");
    ok(&[&run[..], &["--memory", "1GB"]].concat());
    assert!(fails(&[&run[..], &["--memory", "2parsecs"]].concat()).contains("no unit"));
}

/// Software Vulkan is for tests: the CPU device is faster on the same cores.
#[test]
fn auto_takes_the_cpu_where_every_gpu_is_software() {
    let work = Work::new();
    let devices = json(&["devices", "--json"]);
    let hardware =
        devices["gpus"].as_array().unwrap().iter().any(|g| g["kind"] != "Cpu" && g["unusable"].is_null());
    let common = [
        "bench",
        &work.path("int4"),
        "--prompt-tokens",
        "4",
        "--output-tokens",
        "2",
        "--runs",
        "1",
        "--json",
    ];
    let device = |extra: &[&str]| json(&[&common[..], extra].concat())["device"].as_str().unwrap().to_owned();
    assert_eq!(device(&[]).starts_with("cpu"), !hardware);
    assert!(device(&["--device", "gpu"]).starts_with("gpu"));
}

#[test]
fn a_chat_switches_tasks() {
    let work = Work::new();
    let mut chat = Command::new(env!("CARGO_BIN_EXE_calora"))
        .args(["run", &work.path("int4"), "--adapter", &work.path("intent.safetensors"), "--device", "cpu"])
        .args(["--max-tokens", "12"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines =
        "/tasks\n/stats\n/task nothing\n/task intent\nplay some jazz\n/stats\n/task\nplay some jazz\n/quit\n";
    std::io::Write::write_all(&mut chat.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    let output = chat.wait_with_output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stdout.matches("PlayMusic").count(), 1, "once with the task, not without: {stdout}");
    for word in ["intent", "nothing was generated yet", "no task nothing", "swapped in", "tokens/s"] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
}

#[test]
fn mistakes_are_explained() {
    let work = Work::new();
    let (model, base) = (work.path("int4"), models("base"));
    let nowhere = work.path("nowhere");
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["run", &nowhere, "--prompt", "x"], "nowhere"),
        (vec!["compress", &base, &model, "--scheme", "int4"], "int4"),
        (vec!["compress", &base, &nowhere, "--scheme", "int4", "--group-size", "48"], "48"),
        (vec!["compress", &base, &nowhere, "--scheme", "int5"], "int8"),
        (vec!["compress", &model, &nowhere, "--scheme", "int4"], "compressed already"),
        (vec!["compress", &base, &nowhere, "--scheme", "int4", "--method", "gptq"], "calibration"),
        (
            vec!["compress", &base, &nowhere, "--scheme", "int4", "--scheme-for", "gate_proj"],
            "PATTERN=SCHEME",
        ),
        (
            vec!["compress", &base, &nowhere, "--scheme", "int4", "--scheme-for", "gete_proj=int2"],
            "gete_proj",
        ),
        (vec!["run", &model, "--prompt", "x", "--adapter", &nowhere], "nowhere"),
        (vec!["run", &model, "--prompt", "x", "--top-p", "7"], "top_p"),
        (vec!["run", &model, "--prompt", "x", "--context", "100000"], "context"),
        (vec!["logits", &model, "--ids", "1,99999", "--out", &nowhere], "99999"),
        (vec!["eval", &model, "--data", &nowhere], "nowhere"),
        (vec!["pack", &base, "--base", &model, "--out", &nowhere], "adapter_config.json"),
    ];
    for (arguments, word) in cases {
        let stderr = fails(&arguments);
        assert!(stderr.contains(word), "{arguments:?}: {stderr}");
    }
    assert!(!PathBuf::from(&nowhere).exists(), "a failed command left something behind");
}

/// From sentences with labels to a score.
#[test]
fn prepared_rows_are_evaluated() {
    let work = Work::new();
    let (data, rows) = (work.path("data.csv"), work.path("rows.jsonl"));
    let text = "text,intent\nplay some jazz,PlayMusic\nwill it rain in Rome,GetWeather\n";
    std::fs::write(&data, text).unwrap();
    ok(&["prepare", &models("base"), "--data", &data, "--out", &rows, "--as", "choices"]);
    let task = work.path("intent.safetensors");
    let result =
        json(&["eval", &work.path("int4"), "--adapter", &task, "--data", &rows, "--device", "cpu", "--json"]);
    assert_eq!((result["rows"].as_u64(), result["accuracy"].as_f64()), (Some(2), Some(1.0)), "{result}");
    // A misspelt option of the two that belong together.
    assert!(
        fails(&["prepare", &models("base"), "--data", &data, "--out", &rows, "--holdout", "0.5"])
            .contains("--heldout")
    );
}

#[test]
fn the_demo_answers() {
    let text = ok(&["demo", "--device", "cpu"]);
    for word in ["PlayMusic", "GetWeather", "spam", "swapped in"] {
        assert!(text.contains(word), "{word} is missing in: {text}");
    }
}

/// The shipped adapted task belongs to the int2 folder that `compress` writes, on every machine, and repairs it.
#[test]
fn the_shipped_adapted_task_repairs_int2() {
    let work = Work::new();
    ok(&["compress", &models("base"), &work.path("int2"), "--scheme", "int2"]);
    let lora = models("adapters/clean-question");
    ok(&["pack", &lora, "--base", &models("base"), "--out", &work.path("untouched.safetensors")]);
    let rows = "{\"prompt\":\"<|user|>When did the queen no wait the king leave the city?<|assistant|>\",\
                 \"completion\":\"When did the king leave the city?\"}\n\
                {\"prompt\":\"<|user|>How many people work in no sorry live in the capital?<|assistant|>\",\
                 \"completion\":\"How many people live in the capital?\"}\n";
    std::fs::write(work.path("rows.jsonl"), rows).unwrap();
    let f1 = |model: &str, adapter: &str| {
        let report = json(&[
            "eval",
            model,
            "--adapter",
            adapter,
            "--data",
            &work.path("rows.jsonl"),
            "--device",
            "cpu",
            "--json",
        ]);
        report["token_f1"].as_f64().unwrap()
    };
    let adapted = models("adapted/clean-question-int2.safetensors");
    let (before, after) =
        (f1(&work.path("int2"), &work.path("untouched.safetensors")), f1(&work.path("int2"), &adapted));
    assert!(after > before && after > 0.9, "untouched {before:.3}, adapted {after:.3}");
    let error =
        fails(&["eval", &work.path("int4"), "--adapter", &adapted, "--data", &work.path("rows.jsonl")]);
    assert!(error.contains("was made for base"), "{error}");
}

/// Keys, a packed task that is proven, signed and encrypted, and what opens it.
#[test]
fn a_protected_task_opens_with_its_key_and_its_signer_only() {
    let work = Work::new();
    let (base, intent) = (models("base"), models("adapters/intent"));
    let (secret, sign, other) = (work.path("secret"), work.path("sign"), work.path("other"));
    ok(&["keygen", "--encrypt", &secret]);
    let public = ok(&["keygen", "--sign", &sign]);
    ok(&["keygen", "--encrypt", &other]);
    assert!(fails(&["keygen", "--encrypt", &secret]).contains("secret"), "a key was written over");
    #[cfg(unix)]
    for key in [&secret, &sign] {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(key).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "{key} is readable by others");
    }

    let (signed, sealed) = (work.path("signed.safetensors"), work.path("intent.sealed"));
    let common = ["pack", &intent, "--base", &base, "--canary", "--sign", &sign];
    ok(&[&common[..], &["--out", &signed]].concat());
    ok(&[&common[..], &["--out", &sealed, "--encrypt", &secret]].concat());
    let shown = json(&["inspect", &signed, "--json"]);
    assert_eq!(shown["signature"]["valid"], true);
    assert_eq!(shown["signature"]["signer"], public.trim());
    assert_eq!(shown["canary"]["scheme"], "bf16");
    assert_eq!(shown["canary"]["activations"], "f32");
    let closed = json(&["inspect", &sealed, "--json"]);
    assert!(closed["encrypted"] == true && closed["name"].is_null(), "{closed}");
    let opened = json(&["inspect", &sealed, "--key", &secret, "--json"]);
    assert!(
        opened["encrypted"] == true && opened["name"] == "intent" && opened["signature"]["valid"] == true
    );

    // Recorded on bf16, proven on int4 with int8 activations.
    let model = work.path("int4");
    let run = ["run", &model, "--prompt", "wake me with some quiet piano music", "--device", "cpu", "--json"];
    let trusted = format!("{sign}.pub");
    for trust in [trusted.as_str(), public.trim()] {
        let right = ["--adapter", &sealed, "--key", &secret, "--trust", trust, "--check"];
        assert_eq!(json(&[&run[..], &right].concat())["text"], "PlayMusic");
    }
    for (arguments, word) in [
        (&["--adapter", &sealed][..], "is encrypted"),
        (&["--adapter", &sealed, "--key", &other], "another one"),
        (&["--adapter", &sealed, "--key", &sign], "calora-encryption-key"),
        (&["--adapter", &work.path("intent.safetensors"), "--trust", &trusted], "not signed"),
        (&["--adapter", &intent, "--trust", &trusted], "PEFT"),
        (&["--adapter", &signed, "--trust", &"0".repeat(64)], "not among"),
        (&["--adapter", &signed, "--trust", "nobody"], "64 hexadecimal"),
    ] {
        let error = fails(&[&run[..], arguments].concat());
        assert!(error.contains(word), "{arguments:?}: {error}");
    }

    // Encrypting later and undoing it leave the signed file as it was.
    let (again, plain) = (work.path("again.sealed"), work.path("plain.safetensors"));
    ok(&["protect", &signed, "--out", &again, "--encrypt", &secret]);
    ok(&["protect", &again, "--key", &secret, "--out", &plain]);
    assert_eq!(std::fs::read(&plain).unwrap(), std::fs::read(&signed).unwrap());
    assert!(fails(&["protect", &signed, "--out", &plain]).contains("--force"));
    let error = fails(&["protect", &signed, "--out", &work.path("x"), "--canary=Hello", "--base", &base]);
    assert!(error.contains("sign it again"), "{error}");
    assert!(fails(&["protect", &signed, "--out", &work.path("x"), "--canary"]).contains("--base"));
    let mut damaged = std::fs::read(&signed).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&plain, damaged).unwrap();
    assert_eq!(json(&["inspect", &plain, "--json"])["signature"]["valid"], false);
}
