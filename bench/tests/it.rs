//! The bench from outside: it runs, its lines parse, and its ratios follow from its own figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tikv-pitr-bench"))
        .args(["--seconds", "0", "--megabytes", "1", "--regions", "100"])
        .args(args)
        .output()
        .unwrap()
}

fn lines(args: &[&str]) -> Vec<Vec<String>> {
    let output = bench(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    text.lines().map(words).collect()
}

fn number(word: &str) -> f64 {
    let value: f64 = word
        .parse()
        .unwrap_or_else(|_| panic!("not a number: {word}"));
    assert!(value.is_finite() && value > 0.0, "{word}");
    value
}

/// Limits and (rate, ratio) of benches, by name.
type Figures = (BTreeMap<String, f64>, BTreeMap<String, (f64, f64)>);

fn figures(path: &str) -> Figures {
    let (mut limits, mut benches) = Figures::default();
    for line in lines(&["--filter", path]) {
        match &line.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["limit", name, rate] => {
                assert!(limits.insert((*name).to_owned(), number(rate)).is_none());
            }
            ["bench", name, rate, ratio] => {
                let figures = (number(rate), number(ratio));
                assert!(benches.insert((*name).to_owned(), figures).is_none());
            }
            other => panic!("unexpected line {other:?}"),
        }
    }
    (limits, benches)
}

/// `needs` are the bare calls of the path, each of which must have a line.
fn check(path: &str, needs: &[&str]) {
    let (limits, benches) = figures(path);
    for (name, (rate, ratio)) in &benches {
        let limit = limits[name];
        assert!(
            (rate / limit - ratio).abs() < 0.02,
            "{name}: {rate} / {limit} is {ratio}"
        );
    }
    let time: f64 = needs
        .iter()
        .map(|need| 1.0 / limits[&format!("{path}/{need}")])
        .sum();
    let (composed, printed) = (1.0 / time, limits[path]);
    let off = (composed / printed - 1.0).abs();
    assert!(
        off < 0.02,
        "{path}: {composed} of its parts, {printed} printed"
    );
}

#[test]
fn the_limit_of_every_path_is_composed_of_the_calls_that_are_printed() {
    let slices = ["copy", "crc64", "sha256", "zstd-1"];
    check("capture-short", &slices);
    check("capture-long", &slices);
    let with_network = [&slices[..], &["receive-decode"]].concat();
    check("capture-grpc-short", &with_network);
    check("capture-grpc-long", &with_network);
}

#[test]
fn both_restore_paths_are_measured_against_what_they_need() {
    let sst = [
        "copy", "unzstd", "sha256", "crc64", "sort", "sst-lz4", "ingest",
    ];
    let apply = ["copy", "unzstd", "sha256", "sort", "memtable"];
    for shape in ["short", "long"] {
        check(&format!("restore-sst-{shape}"), &sst);
        check(&format!("restore-apply-{shape}"), &apply);
    }
}

#[test]
fn growth_and_pause_lines_name_their_figures() {
    let mut series: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
    for line in lines(&["--filter", "growth"]) {
        let [kind, name, x, cost, unit, ratio] = &line[..] else {
            panic!("{line:?}");
        };
        assert_eq!((&kind[..], &unit[..]), ("growth", "ns/event"));
        let x = x.strip_prefix("x=").unwrap().parse().unwrap();
        let of = series.entry(name.clone()).or_default();
        of.push((x, number(cost)));
        assert!((of.last().unwrap().1 / of[0].1 - number(ratio)).abs() < 0.02);
    }
    for name in ["capture-regions", "capture-slices", "restore-versions"] {
        let xs: Vec<_> = series[name].iter().map(|(x, _)| *x).collect();
        assert!(
            xs[0] == 1 && xs.len() >= 2 && xs.is_sorted(),
            "{name}: {xs:?}"
        );
    }
    let pause = lines(&["--filter", "pause"]);
    let [kind, name, p50, p99, max] = &pause[0][..] else {
        panic!("{pause:?}");
    };
    assert_eq!((&kind[..], &name[..]), ("pause", "seal-100-regions"));
    let of = |word: &str, key: &str| number(word.strip_prefix(key).unwrap());
    let (p50, p99, max) = (of(p50, "p50="), of(p99, "p99="), of(max, "max="));
    assert!(p50 <= p99 && p99 <= max);
}

#[test]
fn a_name_that_no_bench_has_is_an_error_and_help_says_what_is_measured() {
    let output = bench(&["--filter", "capture-shrot"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("capture-shrot"));
    let help = bench(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(
        text.contains("CPU second") && text.contains("busy machine"),
        "{text}"
    );
}
