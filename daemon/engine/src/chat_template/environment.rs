//! The template language as chat templates expect it: Jinja with Python's string methods, Hugging
//! Face's extra functions, and limits. Knows no messages.

use std::io;

use minijinja::value::{Kwargs, Value, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use serde::Serialize as _;

use super::clock::strftime_now;
use crate::limits::{
    TEMPLATE_FUEL_BASE, TEMPLATE_FUEL_MAX, TEMPLATE_FUEL_PER_MESSAGE, TEMPLATE_OUTPUT_BYTES_MAX,
    TEMPLATE_RECURSION_MAX,
};

/// Widest indentation that a template may ask for, in spaces.
const INDENT_MAX: usize = 256;

/// The message of a template's own `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("the template raised an exception")]
pub(super) struct Raised(pub(super) String);

/// An environment with everything a chat template may use, and no template yet.
pub(super) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_debug(false);
    env.set_fuel(Some(fuel(0)));
    env.set_recursion_limit(TEMPLATE_RECURSION_MAX);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(method);
    env.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception")
                .with_source(Raised(message)))
        },
    );
    env.add_function("strftime_now", |format: &str| strftime_now(format));
    env.add_filter("tojson", to_json);
    env.add_filter("indent", indent);
    env.add_filter("join", join);
    env.add_filter("replace", replace);
    // They take sizes from the template and allocate by them, whatever the fuel.
    for filter in ["format", "batch", "slice"] {
        env.remove_filter(filter);
    }
    env
}

/// Instructions that a template may run over so many messages.
pub(super) fn fuel(messages: usize) -> u64 {
    let messages = u64::try_from(messages).unwrap_or(u64::MAX);
    messages
        .saturating_mul(TEMPLATE_FUEL_PER_MESSAGE)
        .saturating_add(TEMPLATE_FUEL_BASE)
        .min(TEMPLATE_FUEL_MAX)
}

/// Python's `json.dumps` without ASCII escapes, as Hugging Face's `tojson` gives it.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted for compatibility; this is how it is always done.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let failed = |_: serde_json::Error| Error::new(ErrorKind::BadSerialization, "tojson");
    let mut out = Vec::new();
    match indent {
        Some(width) if width > INDENT_MAX => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: indent is too wide",
            ));
        }
        Some(width) => {
            let spaces = " ".repeat(width);
            let style = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut to = serde_json::Serializer::with_formatter(&mut out, style);
            value.serialize(&mut to).map_err(failed)?;
        }
        None => {
            let mut to = serde_json::Serializer::with_formatter(&mut out, PythonStyle);
            value.serialize(&mut to).map_err(failed)?;
        }
    }
    match String::from_utf8(out) {
        Ok(text) => Ok(Value::from(text)),
        Err(_) => Err(Error::new(ErrorKind::BadSerialization, "tojson")),
    }
}

/// Jinja's `indent` with a bound on the width: spaces before each line but the first (unless
/// `first`) and empty ones (unless `blank`).
fn indent(
    text: &str,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
) -> Result<String, Error> {
    let width = width.unwrap_or(4);
    if width > INDENT_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "indent: too wide"));
    }
    let spaces = " ".repeat(width);
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            out.push('\n');
        }
        let wanted = if number == 0 {
            first == Some(true)
        } else {
            true
        };
        if wanted && (blank == Some(true) || !line.is_empty()) {
            out.push_str(&spaces);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// Python's methods of strings and other values.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), name) {
        (Some(text), "join") => {
            let (items,): (&Value,) = from_args(args)?;
            return join(items, Some(text)).map(Value::from);
        }
        (Some(text), "replace") => {
            let (from, to, _): (&str, &str, Option<i32>) = from_args(args)?;
            check_replaced(text, from, to)?;
        }
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Jinja's `join`, bounded: joins of joins multiply.
fn join(items: &Value, joiner: Option<&str>) -> Result<String, Error> {
    let mut out = String::new();
    for (number, item) in items.try_iter()?.enumerate() {
        if number > 0 {
            out.push_str(joiner.unwrap_or_default());
        }
        match item.as_str() {
            Some(text) => out.push_str(text),
            None => out.push_str(&item.to_string()),
        }
        check_length(out.len())?;
    }
    Ok(out)
}

/// Jinja's `replace`, bounded for the same reason.
fn replace(text: &str, from: &str, to: &str) -> Result<String, Error> {
    check_replaced(text, from, to)?;
    Ok(text.replace(from, to))
}

fn check_replaced(text: &str, from: &str, to: &str) -> Result<(), Error> {
    let added = text.matches(from).count().saturating_mul(to.len());
    check_length(text.len().saturating_add(added))
}

/// Refuses texts that no prompt has room for.
fn check_length(bytes: usize) -> Result<(), Error> {
    if bytes > TEMPLATE_OUTPUT_BYTES_MAX {
        let message = format!("a text has over {TEMPLATE_OUTPUT_BYTES_MAX} bytes");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(())
}

/// JSON with a space after commas and colons.
struct PythonStyle;

impl serde_json::ser::Formatter for PythonStyle {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Takes output up to the limit and then refuses.
#[derive(Default)]
pub(super) struct Bounded {
    pub(super) bytes: Vec<u8>,
    pub(super) overflowed: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > TEMPLATE_OUTPUT_BYTES_MAX {
            self.overflowed = true;
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
