//! The forward pass, while the model is in GPU memory.

use std::ops::Deref;

use crate::model::Forward;

/// The forward pass, or the place where it was. Steps happen only while it is there.
pub(super) struct Resident(Option<Forward>);

impl Resident {
    /// It is there.
    pub(super) fn new(forward: Forward) -> Self {
        Self(Some(forward))
    }

    /// Takes it out.
    pub(super) fn take(&mut self) -> Option<Forward> {
        self.0.take()
    }
}

impl Deref for Resident {
    type Target = Forward;

    fn deref(&self) -> &Forward {
        let Some(forward) = &self.0 else {
            panic!("the model is in GPU memory while it steps");
        };
        forward
    }
}
