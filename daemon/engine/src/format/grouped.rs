//! Matrices quantised in groups of columns, as GPTQ, AWQ and compressed-tensors store them: where
//! their parts lie, and their rows unpacked. Knows no GPU.
//!
//! w = scale * (n - zero), n and zero whole numbers of four or eight bits, a scale and a zero for each row
//! and group. Numbers are packed in 32-bit words, the first in the low bits:
//! - GPTQ: n `[columns / words', rows]` along columns, scale `[group, row]`, zero `[group, rows / word]`,
//!   in its first version less 1; `g_idx` names each column's group.
//! - AWQ: n `[column, rows / word]` along rows in the order 0 2 4 6 1 3 5 7, zero likewise, scale
//!   `[group, row]`.
//! - pack-quantized: n `[row, columns / word]`, scale `[row, group]`, zero `[rows / word, group]`.
//!
//! Source of the layouts: the published checkpoints and their tools' documentation.

use half::f16;

use super::cursor::clip;
use super::tensor::Place;
use super::{Checkpoint, FormatError, TensorInfo, TensorType};

/// Which row each nibble of an AWQ word belongs to, of the word's eight.
const AWQ_ROWS: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// How the words are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// GPTQ.
    Gptq {
        /// Zero points are stored less 1.
        zeros_less_one: bool,
    },
    /// AWQ for GEMM.
    Awq,
    /// compressed-tensors, pack-quantized.
    Packed,
}

/// A matrix's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouped {
    pub(super) layout: Layout,
    /// 4 or 8.
    pub(super) bits: u32,
    pub(super) rows: u64,
    pub(super) columns: u64,
    /// Columns of a group; the last group may have fewer.
    pub(super) group_len: u64,
    /// The file's word that zero points are all in the middle.
    pub(super) symmetric: bool,
    pub(super) quants: Place,
    pub(super) scales: Place,
    /// F16, BF16 or F32.
    pub(super) scale_type: TensorType,
    pub(super) zeros: Option<Place>,
    /// Each column's group, i32.
    pub(super) group_index: Option<Place>,
}

/// Rows unpacked, `[row, column]` and `[row, group]`.
pub(crate) struct GroupedRows {
    pub(crate) columns: usize,
    pub(crate) groups: usize,
    pub(crate) quants: Vec<u8>,
    pub(crate) scales: Vec<f32>,
    pub(crate) zeros: Vec<u8>,
}

impl GroupedRows {
    /// Numbers, scales and zeros of one row.
    pub(crate) fn row(&self, row: usize) -> (&[u8], &[f32], &[u8]) {
        let groups = row * self.groups..(row + 1) * self.groups;
        (
            &self.quants[row * self.columns..(row + 1) * self.columns],
            &self.scales[groups.clone()],
            &self.zeros[groups],
        )
    }
}

impl Grouped {
    /// Bits of a number: 4 or 8.
    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }

    /// Columns of a group; the last group may have fewer.
    pub(crate) fn group_len(&self) -> u64 {
        self.group_len
    }

    /// Tells whether zero points are all in the middle, as the file says.
    pub(crate) fn is_symmetric(&self) -> bool {
        self.symmetric
    }

    /// Groups of a row.
    pub(crate) fn groups(&self) -> u64 {
        self.columns.div_ceil(self.group_len)
    }

    /// The zero point of symmetric numbers.
    pub(crate) fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Numbers in a word.
    fn per_word(&self) -> u64 {
        u64::from(32 / self.bits)
    }

    /// Each column's group, where columns are not simply in groups one after the other.
    ///
    /// # Errors
    /// The file cannot be read, or names a group that is not there.
    pub(crate) fn column_groups(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
    ) -> Result<Option<Vec<u32>>, FormatError> {
        let Some(place) = self.group_index else {
            return Ok(None);
        };
        let groups = words(&checkpoint.read_place(place, 0, place.bytes, name)?);
        let count = self.groups();
        if let Some(bad) = groups.iter().find(|group| u64::from(**group) >= count) {
            return Err(FormatError::Invalid {
                field: format!("g_idx of {:?}", clip(name)),
                value: bad.cast_signed().to_string(),
                allowed: "the number of a group is needed",
            });
        }
        let in_order = (0..self.columns)
            .zip(&groups)
            .all(|(column, &group)| column / self.group_len == u64::from(group));
        Ok((!in_order).then_some(groups))
    }

    /// Rows `first .. first + count` of `tensor`, which this is; columns in `order` (which stored
    /// column each is) if one is given.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(
        &self,
        checkpoint: &Checkpoint,
        tensor: &TensorInfo,
        (first, count): (u64, u64),
        order: Option<&[u32]>,
    ) -> Result<GroupedRows, FormatError> {
        let wanted: Vec<u64> = (first..first + count)
            .map(|row| tensor.row_order.stored(row))
            .collect();
        let word = self.per_word();
        let low = wanted.iter().min().copied().unwrap_or(0) / word * word;
        let high = wanted.iter().max().map_or(0, |row| row + 1);
        let span = Span {
            low,
            high: high.next_multiple_of(word).min(self.rows),
        };
        let mut targets = vec![None; to_usize(span.rows())];
        for (target, row) in wanted.iter().enumerate() {
            targets[to_usize(row - span.low)] = Some(target);
        }
        let mut columns_to: Vec<usize> = (0..to_usize(self.columns)).collect();
        for (to, from) in order.unwrap_or_default().iter().enumerate() {
            columns_to[*from as usize] = to;
        }
        let source = Source {
            grouped: self,
            checkpoint,
            name: &tensor.name,
            span,
            targets,
        };
        let (columns, groups) = (to_usize(self.columns), to_usize(self.groups()));
        let mut rows = GroupedRows {
            columns,
            groups,
            quants: vec![0; wanted.len() * columns],
            scales: vec![0.0; wanted.len() * groups],
            zeros: vec![self.middle(); wanted.len() * groups],
        };
        source.quants(&columns_to, &mut rows.quants)?;
        source.scales(groups, &mut rows.scales)?;
        if let Some(place) = self.zeros {
            source.zeros(place, groups, &mut rows.zeros)?;
        }
        Ok(rows)
    }
}

#[cfg(fuzzing)]
impl Checkpoint {
    /// Reads the first rows of a tensor as a load does: a way in for the fuzz targets.
    ///
    /// # Errors
    /// As a load's.
    pub fn read_first_rows(&self, tensor: &TensorInfo, count: u64) -> Result<(), FormatError> {
        let super::Stored::Grouped(grouped) = &tensor.stored else {
            return self.read_rows(tensor, 0, count).map(drop);
        };
        grouped.column_groups(self, &tensor.name)?;
        grouped.read(self, tensor, (0, count), None).map(drop)
    }
}

/// Stored rows that are read together: whole words of them.
#[derive(Clone, Copy)]
struct Span {
    low: u64,
    high: u64,
}

impl Span {
    fn rows(self) -> u64 {
        self.high - self.low
    }
}

/// A matrix being read.
struct Source<'a> {
    grouped: &'a Grouped,
    checkpoint: &'a Checkpoint,
    name: &'a str,
    span: Span,
    /// Where each row of the span goes.
    targets: Vec<Option<usize>>,
}

impl Source<'_> {
    /// The span's part of each of `lines` lines of `place`, each of `units` units of `unit` bytes for
    /// the whole matrix; a unit holds `rows_in` rows.
    fn lines(
        &self,
        place: Place,
        lines: u64,
        (unit, rows_in): (u64, u64),
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<(), FormatError> {
        let line_bytes = self.grouped.rows / rows_in * unit;
        let (from, bytes) = (
            self.span.low / rows_in * unit,
            self.span.rows() / rows_in * unit,
        );
        // Whole lines come several at a time.
        let together = if bytes == line_bytes {
            (READ_BYTES / line_bytes.max(1)).clamp(1, lines.max(1))
        } else {
            1
        };
        let mut line = 0;
        while line < lines {
            let count = together.min(lines - line);
            let at = line * line_bytes + from;
            let read = if count == 1 {
                bytes
            } else {
                count * line_bytes
            };
            let data = self.checkpoint.read_place(place, at, read, self.name)?;
            for (i, part) in data.chunks_exact(to_usize(bytes).max(1)).enumerate() {
                take(to_usize(line) + i, part);
            }
            line += count;
        }
        Ok(())
    }

    fn quants(&self, columns_to: &[usize], out: &mut [u8]) -> Result<(), FormatError> {
        let g = self.grouped;
        let columns = columns_to.len();
        let (bits, word) = (g.bits, to_usize(g.per_word()));
        let mask = (1_u32 << bits) - 1;
        let number = |w: u32, k: usize| low_byte(w >> (bits as usize * k) & mask);
        match g.layout {
            Layout::Gptq { .. } => {
                self.lines(g.quants, g.columns / word as u64, (4, 1), |line, data| {
                    let places = &columns_to[line * word..(line + 1) * word];
                    for (w, target) in data.as_chunks().0.iter().zip(&self.targets) {
                        let Some(target) = target else { continue };
                        let w = u32::from_le_bytes(*w);
                        let row = &mut out[target * columns..(target + 1) * columns];
                        for (k, place) in places.iter().enumerate() {
                            row[*place] = number(w, k);
                        }
                    }
                })
            }
            Layout::Awq => self.lines(g.quants, g.columns, (4, word as u64), |column, data| {
                for (w, targets) in data.as_chunks().0.iter().zip(self.targets.chunks(word)) {
                    let w = u32::from_le_bytes(*w);
                    for k in 0..word {
                        if let Some(Some(target)) = targets.get(AWQ_ROWS[k % 8]) {
                            out[target * columns + columns_to[column]] = number(w, k);
                        }
                    }
                }
            }),
            Layout::Packed => {
                let line = g.columns / word as u64 * 4;
                let mut row = 0;
                self.lines(g.quants, 1, (line, 1), |_, data| {
                    for part in data.chunks_exact(to_usize(line)) {
                        if let Some(target) = self.targets[row] {
                            let target = &mut out[target * columns..(target + 1) * columns];
                            let all = part.as_chunks().0.iter().flat_map(|w| {
                                let w = u32::from_le_bytes(*w);
                                (0..word).map(move |k| number(w, k))
                            });
                            for (n, place) in all.zip(columns_to) {
                                target[*place] = n;
                            }
                        }
                        row += 1;
                    }
                })
            }
        }
    }

    fn scales(&self, groups: usize, out: &mut [f32]) -> Result<(), FormatError> {
        let g = self.grouped;
        let bytes = g.scale_type.block_bytes();
        let by_row = g.layout == Layout::Packed;
        let (lines, unit) = if by_row {
            (1, bytes * groups as u64)
        } else {
            (groups as u64, bytes)
        };
        self.lines(g.scales, lines, (unit, 1), |line, data| {
            let values = data
                .chunks_exact(to_usize(bytes))
                .map(|b| float(g.scale_type, b));
            for (i, value) in values.enumerate() {
                let (row, group) = if by_row {
                    (i / groups, i % groups)
                } else {
                    (i, line)
                };
                if let Some(target) = self.targets[row] {
                    out[target * groups + group] = value;
                }
            }
        })
    }

    fn zeros(&self, place: Place, groups: usize, out: &mut [u8]) -> Result<(), FormatError> {
        let g = self.grouped;
        let (bits, word) = (g.bits, to_usize(g.per_word()));
        let mask = (1_u32 << bits) - 1;
        // A one in each number of a word.
        let ones = u32::MAX / mask;
        let by_row = g.layout == Layout::Packed;
        let (lines, unit) = if by_row {
            (1, 4 * groups as u64)
        } else {
            (groups as u64, 4)
        };
        self.lines(place, lines, (unit, word as u64), |line, data| {
            for (i, w) in data.as_chunks().0.iter().enumerate() {
                let mut w = u32::from_le_bytes(*w);
                if let Layout::Gptq {
                    zeros_less_one: true,
                } = g.layout
                {
                    w = w.wrapping_add(ones);
                }
                let (rows, group) = if by_row {
                    (i / groups, i % groups)
                } else {
                    (i, line)
                };
                for k in 0..word {
                    let within = if g.layout == Layout::Awq {
                        AWQ_ROWS[k % 8]
                    } else {
                        k
                    };
                    if let Some(Some(target)) = self.targets.get(rows * word + within) {
                        out[target * groups + group] = low_byte(w >> (bits as usize * k) & mask);
                    }
                }
            }
        })
    }
}

/// Bytes that are read at once.
const READ_BYTES: u64 = 4 << 20;

fn float(scale_type: TensorType, b: &[u8]) -> f32 {
    match scale_type {
        TensorType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        TensorType::Bf16 => f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16),
        _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|w| u32::from_le_bytes(*w)).collect()
}

fn low_byte(n: u32) -> u8 {
    n.to_le_bytes()[0]
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or_else(|_| unreachable!("sizes are checked against limits: {n}"))
}
