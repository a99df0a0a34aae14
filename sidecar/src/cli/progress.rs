//! Bars and spinners for verbs that take long: drawn on stderr if that is a terminal and `NO_COLOR`
//! is not set, else not at all. A bar that is dropped leaves nothing behind.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use super::output;

/// How often a spinner turns.
const TURN: Duration = Duration::from_millis(200);
const BYTES: &str = "{msg:10} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {elapsed}";
const COUNTER: &str = "{spinner} {human_pos} {msg} {per_sec} {elapsed}";
const SPINNER: &str = "{spinner} {msg} {elapsed}";

/// Bytes done of bytes to do, with a message.
pub fn bytes() -> ProgressBar {
    styled(ProgressBar::new(0), BYTES)
}

/// Things counted without knowing how many there are.
pub fn counter(what: &'static str) -> ProgressBar {
    turning(styled(ProgressBar::no_length(), COUNTER), what)
}

/// Something that only takes its time.
pub fn spinner(what: &'static str) -> ProgressBar {
    turning(styled(ProgressBar::no_length(), SPINNER), what)
}

fn turning(bar: ProgressBar, what: &'static str) -> ProgressBar {
    if !bar.is_hidden() {
        bar.enable_steady_tick(TURN);
    }
    bar.with_message(what)
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    let bar = bar.with_finish(ProgressFinish::AndClear);
    if !output::lively_stderr() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        // A template of ours that cannot be read costs the looks only.
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_can_be_read() {
        for template in [BYTES, COUNTER, SPINNER] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn nothing_is_drawn_where_no_terminal_is() {
        if !output::lively_stderr() {
            for bar in [bytes(), counter("keys"), spinner("waiting")] {
                assert!(bar.is_hidden());
            }
        }
    }
}
