//! `calora bench`: fields that programs rely on.

use super::*;

#[test]
fn bench_of_many_tasks_counts_them_and_keeps_its_fields() {
    let work = Work::new();
    let (model, task, plot) = (work.path("int4"), work.path("intent.safetensors"), work.path("swap.svg"));
    let common = ["bench", &model, "--adapter", &task, "--swap", "--tasks", "9", "--prompt-tokens", "32"];
    let rest = ["--resident", "4", "--runs", "2", "--device", "cpu", "--json", "--plot", &plot];
    let report = json(&[&common[..], &rest].concat());
    assert_eq!((&report["tasks"], &report["resident"]), (&Value::from(9), &Value::from(4)));
    let number = |field: &str| report[field].as_f64().unwrap();
    assert_eq!(number("mapped_bytes") / 9.0, number("resident_file_bytes") / 4.0);
    // Close to the files': f16 in both, with little beside.
    let ratio = number("resident_bytes") / number("resident_file_bytes");
    assert!((0.95..1.2).contains(&ratio), "{ratio}");
    for [held, planned] in [["resident_bytes", "planned_resident_bytes"], ["held_bytes", "planned_bytes"]] {
        let share = (number(held) / number(planned) - 1.0).abs();
        assert!(share < 0.05, "{held}: {share}");
    }
    assert!(report["hot_us"]["p50"].as_f64() <= report["hot_us"]["p99"].as_f64());
    assert!(report["first_use_ms_per_mb"].as_f64() > Some(0.0) && report["replacing_ms_per_mb"].is_null());
    let names: Vec<&str> =
        report["policies"].as_array().unwrap().iter().map(|p| p["policy"].as_str().unwrap()).collect();
    assert_eq!(names, ["recompute", "restore", "keep"]);
    let [recompute, restore, keep] = [0, 1, 2].map(|i| &report["policies"][i]);
    let of = |policy: &Value| (policy["exact"].as_bool().unwrap(), policy["cached_tokens"].as_u64().unwrap());
    assert_eq!(of(recompute), (true, 0));
    assert!(of(restore).0 && of(restore).1 >= 32, "{restore}");
    assert!(!of(keep).0 && of(keep).1 >= 32, "{keep}");
    assert_eq!(keep["first_token_ms"].as_array().unwrap().len(), 2);
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    let refused = fails(&[&common[..], &["--resident", "9", "--device", "cpu"]].concat());
    assert!(refused.contains("less than the 9"), "{refused}");
}

#[test]
fn bench_of_sessions_has_a_row_for_each_number() {
    let work = Work::new();
    let (model, task, plot) = (work.path("int4"), work.path("intent.safetensors"), work.path("sessions.svg"));
    let common = ["bench", &model, "--adapter", &task, "--prompt-tokens", "8", "--output-tokens", "6"];
    let rest = ["--sessions", "3", "--runs", "1", "--device", "cpu"];
    let report = json(&[&common[..], &rest, &["--json", "--plot", &plot]].concat());
    let rows = report["rows"].as_array().unwrap();
    let numbers: Vec<u64> = rows.iter().map(|row| row["sessions"].as_u64().unwrap()).collect();
    assert_eq!((numbers, &report["adapters"]), (vec![1, 2, 3], &Value::from(1)));
    for row in rows {
        let of = |field: &str| row[field].as_f64().unwrap();
        assert!(of("in_turn_tokens_per_second") > 0.0 && of("together_tokens_per_second") > 0.0, "{row}");
        assert!(of("gain") > 0.0, "{row}");
    }
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    fails(&[&common[..], &rest, &["--swap"]].concat());
    fails(&["bench", &model, "--sessions", "0", "--device", "cpu"]);
}

#[test]
fn bench_has_its_fields() {
    let work = Work::new();
    let (model, task, plot) = (work.path("int4"), work.path("intent.safetensors"), work.path("bench.svg"));
    let common =
        ["bench", &model, "--prompt-tokens", "8", "--output-tokens", "4", "--runs", "1", "--device", "cpu"];
    let plain = json(&[&common[..], &["--json"]].concat());
    let adapted = json(&[&common[..], &["--json", "--adapter", &task, "--plot", &plot]].concat());
    for field in [
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "time_to_first_token_ms",
        "load_ms",
        "weight_bytes",
        "adapter_bytes",
        "peak_rss_bytes",
    ] {
        assert!(plain[field].is_number() && adapted[field].is_number(), "{field}: {adapted}");
    }
    assert!(plain["device"].is_string() && plain["swap_us"].is_null());
    for field in ["decode_adapter_overhead", "prefill_adapter_overhead"] {
        assert!(plain[field].is_null() && adapted[field].is_number(), "{field}");
    }
    for kind in ["hot", "first_use"] {
        let times = &adapted["swap_us"][kind];
        assert!(times["p50"].as_f64().unwrap() <= times["p99"].as_f64().unwrap(), "{kind}");
    }
    assert!(adapted["adapter_bytes"].as_u64().unwrap() > 0);
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
}
