//! Where words go: model text and results to stdout, progress and notes to stderr and only when a
//! person looks at it. It does not know what the words mean.

use std::cell::RefCell;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// How one command writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// JSON instead of text.
    pub(crate) json: bool,
    stderr_is_terminal: bool,
    stdout_is_terminal: bool,
}

impl Output {
    /// Output of this process.
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            stderr_is_terminal: io::stderr().is_terminal(),
            stdout_is_terminal: io::stdout().is_terminal(),
        }
    }

    /// Writes text to stdout at once, as it is.
    ///
    /// # Errors
    /// Those of writing; `BrokenPipe` when the reader went away.
    pub(crate) fn text(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Writes one line to stdout.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        stdout.flush()
    }

    /// Writes one JSON object as one line to stdout.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub(crate) fn object(&self, value: &Value) -> io::Result<()> {
        self.line(&value.to_string())
    }

    /// Says something to the person, if one looks at stderr.
    pub(crate) fn note(&self, text: &str) {
        if self.stderr_is_terminal && !self.json {
            // There is nobody left to tell when even stderr is gone.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Whether both ends of the conversation are a terminal: text and notes share one screen.
    pub(crate) const fn shares_screen(&self) -> bool {
        self.stderr_is_terminal && self.stdout_is_terminal
    }

    /// A bar on stderr that shows how much of `total_bytes` is there; silent unless a person looks at it.
    pub(crate) fn bar(&self, total_bytes: u64) -> Bar {
        let target = match self.stderr_is_terminal && !self.json {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total_bytes), target);
        bar.set_style(
            ProgressStyle::with_template(
                "{wide_msg} [{bar:24}] {decimal_bytes}/{decimal_total_bytes} \
                 {decimal_bytes_per_sec} {eta}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Bar(bar)
    }

    /// A line on stderr that shows work going on; silent unless a person looks at it.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            is_seen: self.stderr_is_terminal && !self.json,
            bar: RefCell::new(None),
        }
    }
}

/// Writes an error text or a warning to stderr, whoever reads it.
pub(crate) fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// A bar on stderr. It vanishes when dropped.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Shows what is being done, and the bytes done of all.
    pub(crate) fn at(&self, text: &str, done_bytes: u64) {
        if self.0.message() != text {
            self.0.set_message(text.to_owned());
        }
        self.0.set_position(done_bytes);
    }

    /// Takes it off the screen.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A line on stderr that shows work going on. It vanishes when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    is_seen: bool,
    /// There only while something is shown: a bar draws from time to time by itself, and text on the
    /// same screen line would suffer.
    bar: RefCell<Option<ProgressBar>>,
}

impl Progress {
    /// Shows what is being done. The cursor must be at the beginning of a line.
    pub(crate) fn say(&self, text: impl Into<String>) {
        if !self.is_seen {
            return;
        }
        let mut bar = self.bar.borrow_mut();
        let bar = bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(spinner_style());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        bar.set_message(text.into());
    }

    /// Shows what is being done and how much of it is: `done` of `total`.
    pub(crate) fn portion(&self, text: &str, done: u64, total: u64) {
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
        self.say(format!("{text} {percent}%"));
    }

    /// Takes the line off the screen until something is said again.
    pub(crate) fn clear(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// Bytes in words: decimal units, as file managers count.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut unit = 0;
    let (mut whole, mut rest) = (count, 0);
    while whole >= 1000 && unit + 1 < UNITS.len() {
        rest = whole % 1000;
        whole /= 1000;
        unit += 1;
    }
    let name = UNITS[unit];
    if unit == 0 || whole >= 100 {
        format!("{whole} {name}")
    } else {
        format!("{whole}.{} {name}", rest / 100)
    }
}

/// A table as text: columns as wide as their widest cell, two spaces between.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    table_with_numbers(rows, &[])
}

/// As [`table`]; these columns, counted from 0, end at one edge, as numbers should.
pub(crate) fn table_with_numbers(rows: &[Vec<String>], numbers: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if numbers.contains(&column) {
                line.push_str(&format!("{cell:>width$}  "));
            } else {
                line.push_str(&format!("{cell:<width$}  "));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_550_000, "1.5 MB"),
            (98_765_432, "98.7 MB"),
            (135_000_000, "135 MB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn tables_line_up() {
        let rows = vec![
            vec!["NAME".to_owned(), "SIZE".to_owned()],
            vec!["smollm2".to_owned(), "98 MB".to_owned()],
        ];
        assert_eq!(table(&rows), "NAME     SIZE\nsmollm2  98 MB\n");
        assert_eq!(
            table_with_numbers(&rows, &[1]),
            "NAME      SIZE\nsmollm2  98 MB\n"
        );
    }
}
