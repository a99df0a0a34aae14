//! Wrong command lines, for every verb there is: they end with 2, say what is wrong, and do nothing.
//! The verbs are read from the help pages, so a new one is tried without being named here.

use std::process::Command;

use crate::command::{Ran, fits};

fn run(args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_tikv-pitr"))
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn help(words: &[String]) -> String {
    let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
    args.push("--help");
    let ran = run(&args);
    assert_eq!((ran.code, &*ran.stderr), (0, ""), "{words:?}");
    ran.stdout
}

/// Every verb that does something: its words and its help page.
fn verbs() -> Vec<(Vec<String>, String)> {
    let (mut found, mut open) = (Vec::new(), vec![Vec::new()]);
    while let Some(words) = open.pop() {
        let page = help(&words);
        let Some((_, listed)) = page.split_once("Commands:\n") else {
            found.push((words, page));
            continue;
        };
        let listed = listed.split("\n\n").next().unwrap();
        let names = listed
            .lines()
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        for name in names.filter_map(|line| line.split_whitespace().next()) {
            if name != "help" {
                let mut deeper = words.clone();
                deeper.push(name.to_owned());
                open.push(deeper);
            }
        }
    }
    found
}

#[track_caller]
fn misused(words: &[String], more: &[&str]) -> Ran {
    let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
    args.extend(more);
    let ran = run(&args);
    assert_eq!(
        (ran.code, &*ran.stdout),
        (2, ""),
        "{args:?}: {}",
        ran.stderr
    );
    assert!(!ran.stderr.is_empty(), "{args:?} says nothing");
    ran
}

#[test]
fn every_verb_refuses_flags_that_it_has_not_and_says_so_in_json_too() {
    let verbs = verbs();
    assert!(verbs.len() >= 22, "{verbs:?}");
    for (words, _) in &verbs {
        misused(words, &["--no-such-flag"]);
        let ran = misused(words, &["--json", "--no-such-flag"]);
        fits("error", ran.stderr.lines().last().unwrap_or_default());
        let error = ran.error();
        assert_eq!(error["code"], "PITR1001", "{words:?}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("--no-such-flag"), "{words:?}: {message}");
        assert_eq!(ran.stderr.lines().count(), 1, "{words:?}: {}", ran.stderr);
    }
}

#[test]
fn every_verb_refuses_a_word_too_many_and_a_flag_given_twice() {
    for (words, page) in &verbs() {
        // Verbs with a positional argument of their own take one word.
        misused(words, &["surplus", "surplus", "surplus"]);
        if page.contains("--json") {
            misused(words, &["--json", "--json"]);
        }
    }
}

/// Flags whose values have a form, with values that have not.
#[test]
fn values_of_a_wrong_form_are_refused_before_anything_is_asked() {
    let needed = |words: &[String]| -> Vec<&str> {
        let mut more = Vec::new();
        let verb = words.join(" ");
        if verb.starts_with("archive")
            || ["restore point", "log metadata", "verify data", "log start"].contains(&&*verb)
        {
            more.extend(["-s", "local:///nowhere/at/all"]);
        }
        if ["log start", "log stop", "log pause", "log resume"].contains(&&*verb) {
            more.extend(["--task-name", "t"]);
        }
        if ["archive cat", "archive find"].contains(&&*verb) {
            more.push("x");
        }
        more
    };
    let wrong = [
        (
            "--restored-ts",
            &[
                "noon",
                "-10",
                "2026-13-01T00:00:00Z",
                "18446744073709551616",
                "",
            ][..],
        ),
        ("--start-ts", &["noon", "2026-01-01 00:00:00"]),
        ("--at", &["tomorrow", "-1parsec"]),
        ("--from", &["noon"]),
        ("--to", &["1e9"]),
        ("--range", &["zz", "61", "61:6", "62:61", "61:61", ""]),
        ("--memory", &["512", "lots", "-1MiB", "99999999999GiB"]),
        ("--gc-ttl", &["soon", "24", "-1h"]),
        ("--max-lag", &["5", "late"]),
        ("--time", &["0.5", "x"]),
        ("--objects", &["0", "1000001", "-1", "many"]),
        ("--large", &["0", "1025"]),
    ];
    let verbs = verbs();
    for (flag, values) in wrong {
        let with: Vec<_> = verbs
            .iter()
            .filter(|(_, page)| page.contains(&format!("{flag} <")))
            .collect();
        assert!(!with.is_empty(), "no verb has {flag}");
        for (words, _) in with {
            for value in values {
                let mut more = needed(words);
                let joined = format!("{flag}={value}");
                more.push(&joined);
                more.push("--json");
                if words.join(" ").starts_with("archive") || words.join(" ") == "restore point" {
                    // The archive may be looked at first: it is not there.
                    let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
                    args.extend(more);
                    let ran = run(&args);
                    assert!([2, 10].contains(&ran.code), "{args:?}: {}", ran.stderr);
                    fits("error", ran.stderr.lines().last().unwrap());
                } else {
                    let ran = misused(words, &more);
                    fits("error", ran.stderr.lines().last().unwrap());
                }
            }
        }
    }
}

#[test]
fn needed_flags_are_named_when_they_are_missing() {
    for (verb, flags) in [
        ("log start", &["--storage", "--task-name"][..]),
        ("log stop", &["--task-name"]),
        ("log pause", &["--task-name"]),
        ("log resume", &["--task-name"]),
        ("log metadata", &["--storage"]),
        ("restore point", &["--storage"]),
        ("verify data", &["--storage"]),
        ("archive ls", &["--storage"]),
        ("archive stat", &["--storage"]),
        ("archive cat", &["--storage", "<OBJECT>"]),
        ("archive find", &["--storage", "<KEY>"]),
        ("config check", &["--config"]),
        ("config show", &["--config"]),
        ("serve", &["--config"]),
    ] {
        let words: Vec<String> = verb.split(' ').map(str::to_owned).collect();
        let ran = misused(&words, &["--json"]);
        let message = ran.error()["message"].to_string();
        for flag in flags {
            assert!(message.contains(flag), "{verb}: no {flag} in {message}");
        }
    }
}

#[test]
fn a_group_of_verbs_alone_is_no_verb() {
    for group in ["log", "archive", "config", "restore", "verify"] {
        let ran = run(&[group]);
        assert_eq!((ran.code, &*ran.stdout), (2, ""), "{group}");
        assert!(ran.stderr.contains("Usage"), "{group}: {}", ran.stderr);
    }
    assert_eq!(run(&[]).code, 2);
}
