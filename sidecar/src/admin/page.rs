//! The page for people at `/`: the state of every task, and where the other pages are. Plain HTML
//! without scripts; every text that comes from outside is escaped.

use super::{SidecarStatus, TaskStatus};

const HEAD: &str = "<!doctype html><meta charset=utf-8><title>tikv-pitr</title>\
    <style>body{font:15px sans-serif;margin:2em}td{padding:.2em 1em .2em 0;vertical-align:top}</style>";
const PAGES: [&str; 6] = [
    "status.json",
    "metrics",
    "healthz",
    "readyz",
    "config",
    "loglevel",
];

/// Renders the page.
pub(super) fn render(status: &SidecarStatus, health: &Result<(), String>) -> String {
    let mut out = format!(
        "{HEAD}<h1>tikv-pitr {}</h1><table>",
        escape(&status.version)
    );
    let number = |id: Option<u64>| id.map_or("unknown".to_owned(), |id| id.to_string());
    row(&mut out, "cluster", &number(status.cluster_id));
    row(&mut out, "store", &number(status.store_id));
    let health = health.as_ref().err().map_or("good", String::as_str);
    row(&mut out, "health", health);
    if let Some(certificate) = &status.certificate {
        let text = match certificate.problem.is_empty() {
            true => format!("ends {}", certificate.ends_at),
            false => format!(
                "ends {}; changed files are not used: {}",
                certificate.ends_at, certificate.problem
            ),
        };
        row(&mut out, "certificate", &text);
    }
    for store in &status.stores {
        let sidecar = store.sidecar.as_ref().map(ToString::to_string);
        let sidecar = sidecar.as_deref().unwrap_or("no sidecar");
        row(&mut out, &format!("store {}", store.store_id), sidecar);
    }
    out.push_str("</table>");
    for task in status.tasks.values() {
        push_task(&mut out, task);
    }
    out.push_str("<p>");
    for page in PAGES {
        out.push_str(&format!("<a href=\"/{page}\">/{page}</a> "));
    }
    out.push_str("</p>\n");
    out
}

fn push_task(out: &mut String, task: &TaskStatus) {
    out.push_str(&format!("<h2>task {}</h2><table>", escape(&task.name)));
    row(out, "state", &task.state.to_string());
    row(out, "storage", &task.storage);
    let checkpoint = task.checkpoint.as_ref().map(ToString::to_string);
    row(
        out,
        "restorable to",
        checkpoint.as_deref().unwrap_or("nothing yet"),
    );
    if let Some(lag) = task.lag_seconds {
        row(out, "lag", &format!("{lag:.1} s"));
    }
    if let Some(held) = &task.held_by {
        row(out, "held by", &held.to_string());
    }
    row(out, "events/s", &format!("{:.0}", task.events_per_second));
    row(
        out,
        "memory",
        &format!(
            "{} of {} bytes",
            task.buffered_bytes, task.memory_budget_bytes
        ),
    );
    row(
        out,
        "last flush",
        task.last_flush.as_deref().unwrap_or("none yet"),
    );
    out.push_str("</table>");
}

fn row(out: &mut String, name: &str, value: &str) {
    out.push_str(&format!("<tr><td>{name}<td>{}", escape(value)));
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::TaskState;

    #[test]
    fn a_name_from_outside_cannot_become_markup() {
        let mut status = SidecarStatus::default();
        let name = "<script>\"&";
        let task = TaskStatus::new(name, 7, TaskState::Running);
        status.tasks.insert(name.to_owned(), task);
        let page = render(&status, &Err("<b>".to_owned()));
        assert!(page.contains("task &lt;script&gt;&quot;&amp;"), "{page}");
        assert!(!page.contains("<script>") && !page.contains("<b>"));
        assert!(page.contains("href=\"/status.json\""));
    }
}
