//! How the engine is: whether its model can answer, and why not.

/// How the engine is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Condition {
    /// Nothing is in the way: its model answers, if it has one.
    #[default]
    Well,
    /// The GPU was lost often: the model answers in small steps, until that is long ago.
    Careful,
    /// The model was asked to leave the GPU; requests wait.
    Suspended,
    /// The GPU was lost. It is opened again, the model comes back, and requests wait.
    Rebuilding {
        /// What went wrong last.
        reason: String,
    },
    /// The GPU was lost too often, or does not come back. The engine has no model until somebody
    /// loads one.
    Failed {
        /// What went wrong last.
        reason: String,
    },
}

impl Condition {
    /// Tells whether requests are worked on.
    pub fn answers(&self) -> bool {
        matches!(self, Self::Well | Self::Careful)
    }
}

/// Hears of each change of the engine's condition. Called on the engine's thread: it must not block.
pub type OnCondition = Box<dyn Fn(&Condition) + Send>;
