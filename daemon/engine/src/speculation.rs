//! Prompt lookup: drafts a sequence's next tokens from an earlier passage that ended the same way,
//! and says when verifying a draft in one step pays. Pure bookkeeping: no GPU, no clock.
//!
//! What a draft is worth is learnt for nothing: every token, however it was made, is compared with
//! the one drafted for its place, and the hits are counted by how long the two passages have agreed.
//! What a verify step costs is measured by those that ran. An account bounds what failing drafts may
//! cost a sequence, whatever the two say.

/// Most tokens drafted at a time: with the known last token they fill eight columns.
pub(crate) const DRAFT_MAX: u32 = 7;
/// Columns of the kernels that a verify step can take.
const WIDTHS: [u32; 3] = [2, 4, 8];
/// What each width costs in plain steps until one was measured: more than most adapters need.
const RATIOS_ASSUMED: [f64; 3] = [1.3, 1.6, 2.2];
/// A single measurement never counts as more than so many times the present figure.
const OUTLIER: f64 = 4.0;
/// Weight of a new measurement.
const FRESH: f64 = 0.25;
/// Plain steps measured before the first verify step.
const PLAIN_MEASURED_MIN: u32 = 4;
/// Expected gain below which it is not worth the trouble.
const MARGIN: f64 = 1.08;

/// Tokens of the longest passage looked up, and of the shortest.
const NGRAM_MAX: usize = 4;
const NGRAM_MIN: usize = 2;
/// Most entries of a table of passages. Older passages are forgotten as newer ones take their place.
const TABLE_LEN_MAX: usize = 1 << 14;
/// Agreement beyond this many tokens tells nothing more.
const AGREED_MAX: usize = 24;

/// Agreement in tokens from which each class of drafted tokens starts.
const CLASSES: [usize; 6] = [2, 3, 4, 6, 9, 16];
/// Share of each class that holds, as assumed at first,
const RATES_ASSUMED: [f64; 6] = [0.2, 0.3, 0.45, 0.6, 0.75, 0.88];
/// and how many tokens that assumption counts for.
const ASSUMED_WEIGHT: f64 = 6.0;
/// Counts fade so that no more than the last so many tokens of a class matter.
const REMEMBERED: f64 = 48.0;

/// Plain steps a sequence may lose at first,
const CREDIT_START: f64 = 1.0;
/// and for each token it has made,
const CREDIT_A_TOKEN: f64 = 0.02;
/// and at most.
const CREDIT_MAX: f64 = 6.0;

/// What steps cost on this adapter with this model.
#[derive(Debug, Clone)]
pub(crate) struct StepCosts {
    /// Seconds of a plain decode step that follows another without a pause.
    plain_s: f64,
    plain_measured: u32,
    /// Plain steps that a verify step of each width takes the time of.
    ratios: [f64; 3],
}

impl Default for StepCosts {
    fn default() -> Self {
        Self {
            plain_s: 0.0,
            plain_measured: 0,
            ratios: RATIOS_ASSUMED,
        }
    }
}

impl StepCosts {
    /// Notes the seconds of a plain step.
    pub(crate) fn plain(&mut self, seconds: f64) {
        self.plain_s = match self.plain_measured {
            0 => seconds,
            // The first can be slow.
            1..PLAIN_MEASURED_MIN => mix(self.plain_s, seconds, 0.5),
            _ => mix(self.plain_s, seconds.min(self.plain_s * OUTLIER), FRESH),
        };
        self.plain_measured = self.plain_measured.saturating_add(1);
        for (ratio, assumed) in self.ratios.iter_mut().zip(RATIOS_ASSUMED) {
            // So slowly that it costs nothing: what was dear once is tried again some day.
            *ratio = mix(*ratio, ratio.min(assumed), 1.0 / 1024.0);
        }
    }

    /// Notes the seconds of a verify step of `columns` columns.
    pub(crate) fn verify(&mut self, columns: u32, seconds: f64) {
        if self.is_known() {
            let ratio = &mut self.ratios[width_of(columns)];
            let sample = (seconds / self.plain_s).clamp(0.25, *ratio * OUTLIER);
            *ratio = mix(*ratio, sample, FRESH);
        }
    }

    /// Plain steps that a verify step of `columns` columns takes the time of.
    pub(crate) fn ratio(&self, columns: u32) -> f64 {
        self.ratios[width_of(columns)]
    }

    /// Plain steps that a step of `seconds` lost by coming after a pause; 0 if not known.
    pub(crate) fn lost(&self, seconds: f64) -> f64 {
        if self.is_known() {
            (seconds / self.plain_s - 1.0).clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    fn is_known(&self) -> bool {
        self.plain_measured >= PLAIN_MEASURED_MIN && self.plain_s > 0.0
    }
}

/// Index in `WIDTHS` of the kernels that take `columns` columns.
fn width_of(columns: u32) -> usize {
    WIDTHS
        .iter()
        .position(|&width| columns <= width)
        .unwrap_or(WIDTHS.len() - 1)
}

fn mix(old: f64, new: f64, weight: f64) -> f64 {
    old + (new - old) * weight
}

/// How often drafted tokens hold, by the agreement before them.
#[derive(Debug, Clone)]
struct Rates {
    tried: [f64; 6],
    held: [f64; 6],
}

impl Rates {
    fn new() -> Self {
        Self {
            tried: [ASSUMED_WEIGHT; 6],
            held: RATES_ASSUMED.map(|rate| rate * ASSUMED_WEIGHT),
        }
    }

    fn class(agreed: usize) -> usize {
        CLASSES.partition_point(|&from| from <= agreed).max(1) - 1
    }

    fn note(&mut self, agreed: usize, held: bool) {
        let class = Self::class(agreed);
        let keep = 1.0 - 1.0 / REMEMBERED;
        self.tried[class] = self.tried[class] * keep + 1.0;
        self.held[class] = self.held[class] * keep + f64::from(u8::from(held));
    }

    fn rate(&self, agreed: usize) -> f64 {
        let class = Self::class(agreed);
        self.held[class] / self.tried[class]
    }
}

/// One sequence's tokens, the passage they follow, and what following it is worth.
pub(crate) struct Lookup {
    tokens: Vec<u32>,
    /// For passages of 2, 3 and 4 tokens, by a hash of them: the index after the latest one; 0: none.
    tables: [Vec<u32>; NGRAM_MAX - NGRAM_MIN + 1],
    /// Index of the token that is drafted for the next place; 0: none is.
    source: usize,
    /// Tokens before `source` that equal the sequence's last ones.
    agreed: usize,
    rates: Rates,
    /// Plain steps that drafts may yet lose.
    credit: f64,
    /// Draft whatever it costs.
    always: bool,
}

impl Lookup {
    /// A sequence that starts with `prompt` and grows to `positions_max` tokens at most. `always`:
    /// every draft is verified, whatever it costs.
    pub(crate) fn new(prompt: &[u32], positions_max: u32, always: bool) -> Self {
        let len = (positions_max as usize).next_power_of_two();
        let len = len.clamp(64, TABLE_LEN_MAX);
        let mut this = Self {
            tokens: Vec::with_capacity(prompt.len() + 256),
            tables: std::array::from_fn(|_| vec![0; len]),
            source: 0,
            agreed: 0,
            rates: Rates::new(),
            credit: CREDIT_START,
            always,
        };
        for &token in prompt {
            this.tokens.push(token);
            // The prompt's own repetitions say nothing of how the model follows them.
            this.find();
        }
        this
    }

    /// The last token.
    pub(crate) fn last(&self) -> Option<u32> {
        self.tokens.last().copied()
    }

    /// Takes the next token, and learns from it.
    pub(crate) fn push(&mut self, token: u32) {
        let drafted = self.drafted(0);
        if let Some(drafted) = drafted {
            self.rates.note(self.agreed, drafted == token);
        }
        self.credit = (self.credit + CREDIT_A_TOKEN).min(CREDIT_MAX);
        let (source, agreed) = (self.source, self.agreed);
        self.tokens.push(token);
        self.find();
        // A passage that has held for long is followed on, also past newer ones that end alike.
        if drafted == Some(token) && agreed + 1 >= self.agreed {
            (self.source, self.agreed) = (source + 1, (agreed + 1).min(AGREED_MAX));
        }
    }

    /// A draft of the next `count` tokens; empty if there is no passage to follow.
    pub(crate) fn draft(&self, count: u32) -> Vec<u32> {
        (0..count as usize).map_while(|i| self.drafted(i)).collect()
    }

    /// The token drafted for `ahead` tokens after the next place.
    fn drafted(&self, ahead: usize) -> Option<u32> {
        if self.source == 0 {
            return None;
        }
        // A passage that reaches up to now repeats itself.
        let period = self.tokens.len() - self.source;
        Some(self.tokens[self.source + ahead % period])
    }

    /// How many tokens to draft, at most `most`, for the step after the `under_way` ones; 0: decode on.
    pub(crate) fn plan(&self, under_way: u32, most: u32, costs: &StepCosts) -> u32 {
        let most = most.min(DRAFT_MAX);
        if self.source == 0 || most == 0 {
            return 0;
        }
        if self.always {
            return most;
        }
        if self.credit <= 0.0 || !costs.is_known() {
            return 0;
        }
        let mut best = (MARGIN, 0);
        for width in WIDTHS {
            let count = most.min(width - 1);
            let value = self.expected(under_way, count) / costs.ratio(count + 1);
            if value > best.0 {
                best = (value, count);
            }
        }
        best.1
    }

    /// Tokens that a step with a draft of `count` makes on average, after `under_way` tokens that must
    /// turn out as drafted too.
    fn expected(&self, under_way: u32, count: u32) -> f64 {
        let mut all_held = 1.0;
        let mut tokens = 1.0;
        for i in 0..under_way + count {
            all_held *= self.rates.rate(self.agreed + i as usize);
            if i >= under_way {
                tokens += all_held;
            }
        }
        tokens
    }

    /// Accounts for a verify step that took the time of `ratio` plain steps and made `tokens` tokens.
    pub(crate) fn verified(&mut self, tokens: u32, ratio: f64) {
        self.credit = (self.credit + f64::from(tokens) - ratio).min(CREDIT_MAX);
    }

    /// Accounts for `steps` plain steps of time lost to a pause.
    pub(crate) fn lost(&mut self, steps: f64) {
        self.credit -= steps;
    }

    /// Looks for the latest earlier passage that ends as the tokens do now, longest first, and
    /// enters the present one.
    fn find(&mut self) {
        let end = self.tokens.len();
        (self.source, self.agreed) = (0, 0);
        for n in (NGRAM_MIN..=NGRAM_MAX.min(end)).rev() {
            let tail = &self.tokens[end - n..];
            let table = &mut self.tables[n - NGRAM_MIN];
            let at = hash(tail) & (table.len() - 1);
            let found = table[at] as usize;
            // Another passage may have the same hash.
            if self.source == 0 && found >= n && self.tokens[found - n..found] == *tail {
                self.source = found;
            }
            table[at] = u32::try_from(end).unwrap_or(0);
        }
        if self.source > 0 {
            let before = self.tokens[..self.source].iter().rev();
            let agreeing = before.zip(self.tokens.iter().rev());
            self.agreed = agreeing
                .take(AGREED_MAX)
                .take_while(|(a, b)| a == b)
                .count();
        }
    }
}

/// Mixes a passage into the low bits of a number.
fn hash(passage: &[u32]) -> usize {
    let mixed = passage.iter().fold(0_u32, |mixed, &token| {
        (mixed.rotate_left(5) ^ token).wrapping_mul(0x9e37_79b1)
    });
    (mixed ^ (mixed >> 15)) as usize
}
