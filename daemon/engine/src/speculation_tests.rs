//! Drafts against a search of the whole text; what a draft is held to be worth; what failing drafts
//! may cost. Times are made up, so nothing here depends on the machine.

use proptest::prelude::*;

use crate::speculation::{DRAFT_MAX, Lookup, StepCosts};

/// A plain step takes 10 ms; what verify steps of 2, 4 and 8 columns take in plain steps.
const PLAIN_S: f64 = 0.01;

fn costs(ratios: [f64; 3]) -> StepCosts {
    let mut costs = StepCosts::default();
    for _ in 0..8 {
        costs.plain(PLAIN_S);
    }
    for _ in 0..64 {
        for (columns, ratio) in [2, 4, 8].into_iter().zip(ratios) {
            costs.verify(columns, PLAIN_S * ratio);
        }
    }
    costs
}

/// Numbers that do not repeat for long.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        u32::try_from(self.0 >> 33).unwrap() % n
    }
}

/// Decodes `text` after `prompt` as the engine would; returns the time in plain steps.
fn decode(prompt: &[u32], text: &[u32], costs: &StepCosts, true_ratio: f64) -> f64 {
    let mut lookup = Lookup::new(prompt, 4096, false);
    let (mut at, mut time) = (0, 0.0);
    while at < text.len() {
        let most = u32::try_from(text.len() - at - 1).unwrap();
        let drafted = lookup.plan(0, most, costs);
        let draft = lookup.draft(drafted);
        let held = draft
            .iter()
            .zip(&text[at..])
            .take_while(|(a, b)| a == b)
            .count();
        for &token in &text[at..=at + held] {
            lookup.push(token);
        }
        at += held + 1;
        if drafted > 0 {
            lookup.verified(u32::try_from(held).unwrap() + 1, true_ratio);
            time += true_ratio;
        } else {
            time += 1.0;
        }
    }
    time
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap())
}

#[test]
fn follows_the_latest_passage_of_the_longest_match() {
    let lookup = Lookup::new(
        &[1, 2, 3, 4, 50, 2, 3, 4, 60, 9, 3, 4, 70, 2, 3, 4],
        64,
        true,
    );
    assert_eq!(lookup.draft(3), [60, 9, 3]);
    assert_eq!(lookup.last(), Some(4));
    let lookup = Lookup::new(&[7, 8, 1, 9, 2], 64, true);
    assert!(lookup.draft(4).is_empty(), "one token is no passage");
    assert_eq!(lookup.plan(0, 7, &StepCosts::default()), 0);
}

#[test]
fn a_loop_is_drafted_on_past_its_end() {
    let lookup = Lookup::new(&[5, 1, 2, 3, 1, 2, 3, 1], 64, true);
    assert_eq!(lookup.draft(DRAFT_MAX), [2, 3, 1, 2, 3, 1, 2]);
    let mut lookup = Lookup::new(&[9], 64, true);
    for _ in 0..4 {
        lookup.push(9);
    }
    assert_eq!(lookup.draft(3), [9, 9, 9]);
}

#[test]
fn a_draft_stays_within_what_is_asked() {
    let lookup = Lookup::new(&[1, 2, 3, 1, 2], 64, true);
    let costs = StepCosts::default();
    assert_eq!(lookup.plan(0, 100, &costs), DRAFT_MAX);
    assert_eq!(lookup.plan(1, 3, &costs), 3);
    assert_eq!(lookup.plan(0, 0, &costs), 0);
}

#[test]
fn nothing_is_drafted_before_a_plain_step_was_measured() {
    let text: Vec<u32> = (0..40).chain(0..30).collect();
    let lookup = Lookup::new(&text, 256, false);
    assert_eq!(lookup.plan(0, 7, &StepCosts::default()), 0);
    assert_eq!(lookup.plan(0, 7, &costs([1.1, 1.2, 1.3])), 7);
    assert_eq!(lookup.plan(0, 7, &costs([9.0, 9.0, 9.0])), 0, "too dear");
}

#[test]
fn a_copy_is_made_in_far_fewer_steps() {
    let mut random = Random(3);
    let prompt: Vec<u32> = (0..400).map(|_| random.below(30_000)).collect();
    let time = decode(&prompt, &prompt, &costs([1.2, 1.3, 1.5]), 1.5);
    assert!(time < 0.3 * count(prompt.len()), "{time} steps");
}

#[test]
fn drafts_that_fail_cost_a_few_per_cent_at_most() {
    let mut random = Random(5);
    // Few different tokens: there is always a passage to follow, and it never tells anything.
    let text: Vec<u32> = (0..3000).map(|_| random.below(6)).collect();
    let (prompt, text) = text.split_at(1000);
    // The worst case on purpose: a verify step looks free and costs three.
    let time = decode(prompt, text, &costs([1.0, 1.0, 1.0]), 3.0);
    let most = 1.02 * count(text.len()) + 1.0 + 3.0;
    assert!(time <= most, "{time} steps for {}", text.len());
}

#[test]
fn one_slow_step_is_not_remembered_for_ever() {
    let mut costs = costs([1.2, 1.3, 1.5]);
    costs.verify(8, PLAIN_S * 1000.0);
    let after = costs.ratio(8);
    assert!(after < 4.0, "{after}");
    for _ in 0..3000 {
        costs.plain(PLAIN_S);
    }
    assert!(costs.ratio(8) < after);
    assert!(costs.lost(PLAIN_S) < 1e-9);
    assert!((costs.lost(PLAIN_S * 1.5) - 0.5).abs() < 0.01);
}

proptest! {
    #[test]
    fn a_draft_follows_a_passage_that_ends_alike(text in prop::collection::vec(0u32..5, 2..60)) {
        let lookup = Lookup::new(&text, 4096, true);
        let tail = &text[text.len() - 2..];
        let followers: Vec<u32> = (2..text.len())
            .filter(|&at| &text[at - 2..at] == tail)
            .map(|at| text[at])
            .collect();
        match lookup.draft(1).first() {
            Some(drafted) => prop_assert!(followers.contains(drafted)),
            // Another passage may have taken the place of the only one.
            None => prop_assert!(followers.len() <= 2, "{followers:?}"),
        }
    }

    #[test]
    fn no_text_breaks_it(text in prop::collection::vec(0u32..4, 1..300), most in 0u32..9) {
        // More tokens than it was told of, so that its tables overflow.
        let mut lookup = Lookup::new(&text[..1], 32, true);
        for &token in &text[1..] {
            lookup.push(token);
            let drafted = lookup.plan(0, most, &StepCosts::default());
            prop_assert!(drafted <= most.min(DRAFT_MAX));
            prop_assert_eq!(lookup.draft(drafted).len(), drafted as usize);
        }
        prop_assert_eq!(lookup.last(), text.last().copied());
    }
}
