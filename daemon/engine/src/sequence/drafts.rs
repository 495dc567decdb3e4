//! A sequence's drafts: whether it has any, what a verify step holds, and which of it counts.

use super::Sequence;
use crate::event::TokenOutput;
use crate::speculation::Lookup;

impl Sequence {
    /// Lets its tokens be drafted, if its settings are such that drafts leave them the same.
    /// `always`: whatever it costs.
    pub(crate) fn speculate(&mut self, always: bool) {
        let request = &self.request;
        // A penalty would have to know the columns before its own, and log-probabilities would have
        // to be read for every column.
        let plain = request.sampling.temperature == 0.0
            && !request.sampling.has_penalties()
            && request.logprobs.is_none();
        if plain && self.generated_max > 1 {
            let lookup = Lookup::new(&self.tokens, self.positions_max(), always);
            self.lookup = Some(lookup);
        }
    }

    /// Tokens of a verify step's columns: the last token and the draft.
    pub(crate) fn verify_columns(&self, drafted: u32) -> Vec<u32> {
        let lookup = self.lookup.as_ref();
        let last = lookup.and_then(Lookup::last);
        let draft = lookup.map_or_else(Vec::new, |l| l.draft(drafted));
        last.into_iter().chain(draft).collect()
    }

    /// Accepts what a step sampled: one token, or one after each column of a verify step, of which
    /// those count whose columns hold what was sampled. Returns how much of the draft held, and how
    /// many tokens were taken before the end.
    pub(crate) fn accept_step(&mut self, tokens: Vec<TokenOutput>) -> (u32, u32) {
        self.changing = true;
        let mut held = 0;
        if let (Some(drafted), Some(lookup)) = (self.verifying.take(), &self.lookup) {
            let draft = lookup.draft(drafted);
            let pairs = draft.iter().zip(&tokens);
            let right = pairs.take_while(|(drafted, token)| **drafted == token.id);
            held = u32::try_from(right.count()).unwrap_or(0);
            self.sampling += held;
            if self.computed > 0 {
                // Unless its KV was dropped meanwhile.
                self.computed = self.prompt_tokens + self.sampling - 1;
            }
        }
        let mut taken = 0;
        for token in tokens.into_iter().take(held as usize + 1) {
            taken += 1;
            self.accept(token);
            if self.ended {
                break;
            }
        }
        self.changing = false;
        (held, taken)
    }

    /// Its account of drafts: a verify step made `tokens` tokens in the time of `ratio` plain steps.
    pub(crate) fn verified(&mut self, tokens: u32, ratio: f64) {
        if let Some(lookup) = &mut self.lookup {
            lookup.verified(tokens, ratio);
        }
    }

    /// Its account of drafts: a pause cost the time of so many plain steps.
    pub(crate) fn paused(&mut self, steps: f64) {
        if let Some(lookup) = &mut self.lookup {
            lookup.lost(steps);
        }
    }
}
