//! Where chat templates are compiled and rendered: in a process apart, one rendering at a time.
//!
//! A template comes with a model, from strangers, and may ask for any amount of memory and time.
//! The renderer holds no model and forks a child for each rendering, which the system bounds. A
//! daemon that is a library, on a system without `fork`, or whose renderer is gone, renders in its
//! own process: it gave up starting programs long before it sees a template.

#[cfg(unix)]
mod frame;
#[cfg(unix)]
mod front;
#[cfg(unix)]
mod renderer;

use std::sync::Weak;
#[cfg(unix)]
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_engine::chat_template::{ChatMessage, ChatTemplate, Part, TemplateError};

#[cfg(unix)]
pub use renderer::render_for_parent;

/// The hidden subcommand of `hearthd` that is the renderer.
pub const RENDERER_COMMAND: &str = "render-templates";

/// Why a conversation was not rendered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenderError {
    /// The template fails, or refuses it.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Too many wait already.
    #[cfg_attr(
        not(unix),
        expect(dead_code, reason = "nobody waits without a renderer")
    )]
    #[error("too many conversations wait to be rendered")]
    Crowded,
    /// Nobody waits for it any more.
    #[error("the caller is gone")]
    AskerGone,
}

/// Renders chat templates. The default does it in this process.
#[derive(Debug, Default)]
pub struct Templates {
    /// Waiters have it in the order they came.
    #[cfg(unix)]
    renderer: Option<tokio::sync::Mutex<Option<front::Renderer>>>,
    #[cfg(unix)]
    waiting: AtomicUsize,
}

impl Templates {
    /// Starts a renderer. Must be called before the process gives up running programs. What fails is
    /// logged, and templates are rendered in this process.
    pub fn start() -> Self {
        #[cfg(unix)]
        match front::Renderer::start() {
            Ok(renderer) => {
                return Self {
                    renderer: Some(tokio::sync::Mutex::new(Some(renderer))),
                    waiting: AtomicUsize::new(0),
                };
            }
            Err(error) => tracing::warn!(
                %error,
                "no process for chat templates: they are rendered here, without its limits"
            ),
        }
        Self::default()
    }

    /// Renders messages and the beginning of a reply. Blocks until others before are done; gives up
    /// its place if `asker` is gone by then.
    ///
    /// # Errors
    /// See [`RenderError`].
    pub(crate) fn render_parts(
        &self,
        asker: &Weak<()>,
        template: &ChatTemplate,
        messages: &[ChatMessage<'_>],
    ) -> Result<Vec<Part>, RenderError> {
        #[cfg(unix)]
        if let Some(renderer) = &self.renderer {
            let _place = Place::take(&self.waiting)?;
            let ask = frame::ask(template, messages)?;
            let mut renderer = renderer.blocking_lock();
            if asker.strong_count() == 0 {
                return Err(RenderError::AskerGone);
            }
            if let Some(answer) = front::answer(&mut renderer, &ask) {
                return Ok(answer?);
            }
        }
        if asker.strong_count() == 0 {
            return Err(RenderError::AskerGone);
        }
        Ok(template.render_parts(messages, true)?)
    }
}

/// A place among those who wait.
#[cfg(unix)]
struct Place<'a>(&'a AtomicUsize);

#[cfg(unix)]
impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self, RenderError> {
        let place = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= crate::limits::RENDERS_WAITING_MAX {
            return Err(RenderError::Crowded);
        }
        Ok(place)
    }
}

#[cfg(unix)]
impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::limits::RENDERS_WAITING_MAX;

    #[test]
    fn so_many_wait_and_no_more() {
        let waiting = AtomicUsize::new(0);
        let mut places = Vec::new();
        for _ in 0..RENDERS_WAITING_MAX {
            places.push(Place::take(&waiting).map_err(|error| error.to_string()));
        }
        assert!(places.iter().all(Result::is_ok));
        for _ in 0..3 {
            assert!(matches!(Place::take(&waiting), Err(RenderError::Crowded)));
        }
        places.pop();
        assert!(Place::take(&waiting).is_ok());
    }

    #[test]
    fn nothing_is_rendered_for_nobody() {
        let template = ChatTemplate::new("x", "", "").unwrap();
        let templates = Templates::default();
        let asker = std::sync::Arc::new(());
        let weak = std::sync::Arc::downgrade(&asker);
        assert!(templates.render_parts(&weak, &template, &[]).is_ok());
        drop(asker);
        let refused = templates.render_parts(&weak, &template, &[]);
        assert!(matches!(refused, Err(RenderError::AskerGone)));
    }
}
