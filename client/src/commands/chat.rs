//! `hearth chat`: a conversation in the terminal. The conversation lives here and goes to the daemon
//! whole each time; only the typed lines are kept on disk, if at all.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use hearth::{Client, v1};
use hearth_proto::endpoint;
use rustyline::config::Configurer as _;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, history::History as _};

use crate::cli::{ChatArgs, Global};
use crate::exit::{Failure, Kind};
use crate::output::{Output, complain};

use super::connect;
use super::reply::{Shown, judge_end};
use super::request::{message, options};

/// Lines of typed history kept on disk.
const HISTORY_LINES: usize = 1000;

const HELP: &str = "\
/help           this text
/clear          forget the conversation
/system [TEXT]  tell the model TEXT before the conversation (alone: tell it nothing)
/undo           forget the last question and its reply
/save FILE      write the conversation to a new file
/quit           leave (so does Ctrl-D)
A line that ends with a backslash goes on in the next. Ctrl-C stops a reply.";

/// Talks until the input ends.
///
/// # Errors
/// The daemon cannot be reached, or the terminal cannot be used. A failed reply is shown, and the
/// conversation goes on; if the input is no terminal it ends the conversation.
pub(crate) async fn chat(args: ChatArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let client = connect(global, output).await?;
    let mut input = Input::open(!args.no_history)?;
    let mut talk = Talk {
        system: args.system,
        messages: Vec::new(),
    };
    output.note("/help lists commands, Ctrl-D leaves.");
    loop {
        let line;
        (input, line) = input.read().await?;
        let Some(line) = line else { break };
        let text = line.trim();
        if text.is_empty() {
            continue;
        }
        if let Some(command) = text.strip_prefix('/') {
            if talk.obey(command, output)? == Next::Leave {
                break;
            }
            continue;
        }
        talk.messages.push(message(v1::Role::User, text));
        let request = v1::ChatRequest {
            model: args.generation.model.clone().unwrap_or_default(),
            messages: talk.all(),
            options: Some(v1::GenerationOptions {
                // A long talk goes on without its beginning; the end of the reply says so.
                allow_truncation: true,
                ..options(&args.generation)
            }),
        };
        match answer(&client, request, output).await {
            Ok(reply) => talk.messages.push(message(v1::Role::Assistant, reply)),
            Err(failure) if failure.kind == Kind::PipeClosed || !input.is_terminal => {
                return Err(failure);
            }
            Err(failure) => {
                talk.messages.pop();
                complain(&failure.render());
            }
        }
    }
    input.save();
    Ok(())
}

/// Shows one reply and returns its text. Ctrl-C stops it; what came until then counts.
async fn answer(
    client: &Client,
    request: v1::ChatRequest,
    output: Output,
) -> Result<String, Failure> {
    let mut shown = Shown::new(output);
    let follow = async {
        let reply = client.chat(request).await?;
        shown.follow(reply).await
    };
    let end = tokio::select! {
        end = follow => Some(end?),
        _ = tokio::signal::ctrl_c() => None,
    };
    match end {
        Some(end) => judge_end(&end, output)?,
        None => {
            shown.finish_line();
            output.note("[stopped]");
        }
    }
    Ok(shown.text)
}

/// What is said, and what the model was told before.
struct Talk {
    system: Option<String>,
    messages: Vec<v1::ChatMessage>,
}

/// Whether the conversation goes on.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Stay,
    Leave,
}

impl Talk {
    fn all(&self) -> Vec<v1::ChatMessage> {
        let system = self
            .system
            .iter()
            .map(|text| message(v1::Role::System, text.as_str()));
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// Does what a line that began with `/` says.
    fn obey(&mut self, command: &str, output: Output) -> Result<Next, Failure> {
        let (name, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        let rest = rest.trim();
        match name {
            "quit" | "exit" | "bye" => return Ok(Next::Leave),
            "help" | "?" => output.note(HELP),
            "clear" => {
                self.messages.clear();
                output.note("[the conversation is forgotten]");
            }
            "system" => {
                self.system = (!rest.is_empty()).then(|| rest.to_owned());
                output.note(if rest.is_empty() {
                    "[told nothing]"
                } else {
                    "[told]"
                });
            }
            "undo" => {
                let kept = self
                    .messages
                    .iter()
                    .rposition(|m| m.role == i32::from(v1::Role::User));
                self.messages.truncate(kept.unwrap_or(0));
                output.note(&format!("[{} messages left]", self.messages.len()));
            }
            "save" if rest.is_empty() => output.note("/save needs a file name"),
            "save" => match save_text(Path::new(rest), &self.all()) {
                Ok(()) => output.note(&format!("[written to {rest}]")),
                Err(error) => complain(&format!("hearth: cannot write {rest}: {error}\n")),
            },
            _ => output.note(&format!("there is no /{name}; /help lists what there is")),
        }
        Ok(Next::Stay)
    }
}

/// Writes the conversation to a new file that only its owner can read.
fn save_text(path: &Path, messages: &[v1::ChatMessage]) -> io::Result<()> {
    let mut file = private_file(path, true)?;
    for message in messages {
        let who = match message.role() {
            v1::Role::System => "system",
            v1::Role::Assistant => "model",
            _ => "you",
        };
        io::Write::write_fmt(&mut file, format_args!("{who}: {}\n\n", message.content))?;
    }
    Ok(())
}

/// Opens a file that only its owner can read, new or as it is.
fn private_file(path: &Path, must_be_new: bool) -> io::Result<std::fs::File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).create_new(must_be_new);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Where lines come from: the line editor, which also reads plain pipes.
struct Input {
    editor: DefaultEditor,
    history_path: Option<PathBuf>,
    is_terminal: bool,
}

impl Input {
    fn open(keep_history: bool) -> Result<Self, Failure> {
        let is_terminal = io::stdin().is_terminal();
        let mut editor = DefaultEditor::new().map_err(terminal_failure)?;
        editor
            .set_max_history_size(HISTORY_LINES)
            .map_err(terminal_failure)?;
        // A line that begins with a space is not kept, as in a shell.
        editor.set_history_ignore_space(true);
        let mut history_path = None;
        if keep_history && is_terminal {
            match open_history(&mut editor) {
                Ok(path) => history_path = Some(path),
                // Talking matters more than remembering.
                Err(error) => complain(&format!("hearth: warning: no history: {error}\n")),
            }
        }
        Ok(Self {
            editor,
            history_path,
            is_terminal,
        })
    }

    /// Reads one line, with its continuations; `None` at the end of the input.
    async fn read(mut self) -> Result<(Self, Option<String>), Failure> {
        let is_terminal = self.is_terminal;
        let reading = tokio::task::spawn_blocking(move || {
            let line = self.read_blocking();
            (self, line)
        });
        let (input, line) = tokio::select! {
            read = reading => read.map_err(io::Error::other)?,
            // At a terminal the editor sees Ctrl-C as a key.
            _ = tokio::signal::ctrl_c(), if !is_terminal => return Err(Failure::interrupted()),
        };
        Ok((input, line?))
    }

    fn read_blocking(&mut self) -> Result<Option<String>, Failure> {
        let mut text = String::new();
        loop {
            match self
                .editor
                .readline(if text.is_empty() { "> " } else { ". " })
            {
                Ok(line) => match line.strip_suffix('\\') {
                    Some(begun) => {
                        text.push_str(begun);
                        text.push('\n');
                    }
                    None => {
                        text.push_str(&line);
                        if !text.trim().is_empty() {
                            self.editor
                                .add_history_entry(&text)
                                .map_err(terminal_failure)?;
                        }
                        return Ok(Some(text));
                    }
                },
                // The first Ctrl-C takes the line back; leaving is Ctrl-D's.
                Err(ReadlineError::Interrupted) => text.clear(),
                Err(ReadlineError::Eof) if text.is_empty() => return Ok(None),
                Err(ReadlineError::Eof) => return Ok(Some(text)),
                Err(error) => return Err(terminal_failure(error)),
            }
        }
    }

    fn save(&mut self) {
        let Some(path) = &self.history_path else {
            return;
        };
        if self.editor.history().is_empty() {
            return;
        }
        if let Err(error) = self.editor.save_history(path) {
            complain(&format!(
                "hearth: warning: the history was not kept: {error}\n"
            ));
        }
    }
}

/// Loads the history; its file exists afterwards and is private.
fn open_history(editor: &mut DefaultEditor) -> io::Result<PathBuf> {
    let dir = endpoint::state_dir().map_err(io::Error::other)?;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(&dir)?;
    let path = dir.join("chat_history");
    drop(private_file(&path, false)?);
    editor.load_history(&path).map_err(io::Error::other)?;
    Ok(path)
}

fn terminal_failure(error: ReadlineError) -> Failure {
    match error {
        ReadlineError::Io(error) => error.into(),
        error => Failure::new(Kind::Runtime, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Talk {
        let messages = vec![
            message(v1::Role::User, "one"),
            message(v1::Role::Assistant, "eins"),
            message(v1::Role::User, "two"),
            message(v1::Role::Assistant, "zwei"),
        ];
        Talk {
            system: None,
            messages,
        }
    }

    #[test]
    fn commands_change_the_conversation() {
        let output = Output::new(true);
        let mut talk = talk();
        assert_eq!(talk.obey("undo", output).unwrap(), Next::Stay);
        assert_eq!(talk.messages.len(), 2);
        talk.obey("system be brief", output).unwrap();
        assert_eq!(talk.all()[0].content, "be brief");
        assert_eq!(talk.all()[0].role(), v1::Role::System);
        talk.obey("clear", output).unwrap();
        assert_eq!(talk.all().len(), 1, "what the model is told stays");
        talk.obey("system", output).unwrap();
        assert!(talk.all().is_empty());
        talk.obey("undo", output).unwrap();
        talk.obey("nonsense", output).unwrap();
        assert_eq!(talk.obey("quit", output).unwrap(), Next::Leave);
    }

    #[test]
    fn a_saved_conversation_is_new_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.txt");
        save_text(&path, &talk().all()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("you: one\n\nmodel: eins\n\n"), "{text}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(
                std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        assert!(save_text(&path, &[]).is_err(), "nothing is overwritten");
    }
}
