//! A recording: the dispatches of one step as data, apart from the device that will run them.

use std::sync::Arc;

use super::{Pipeline, Stopwatch};

/// How far a grid reaches along one axis, resolved when a step is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    /// A fixed number of workgroups.
    Fixed(u32),
    /// One for each column of the step.
    Columns,
    /// One for each group of so many columns.
    ColumnTiles(u32),
    /// One for each output column.
    Outputs,
    /// One for each group of so many output columns.
    OutputTiles(u32),
    /// One for each tile of `rows` rows, where a column has `group` rows.
    RowTiles {
        /// Rows of a column.
        group: u32,
        /// Rows of a tile.
        rows: u32,
    },
    /// One for each attention split of the longest column.
    Splits,
}

/// The numbers that resolve an [`Axis`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extent {
    pub(crate) columns: u32,
    pub(crate) outputs: u32,
    pub(crate) splits: u32,
}

impl Axis {
    pub(crate) fn resolve(self, extent: Extent) -> u32 {
        match self {
            Self::Fixed(n) => n,
            Self::Columns => extent.columns,
            Self::ColumnTiles(n) => extent.columns.div_ceil(n),
            Self::Outputs => extent.outputs,
            Self::OutputTiles(n) => extent.outputs.div_ceil(n),
            Self::RowTiles { group, rows } => (extent.columns * group).div_ceil(rows),
            Self::Splits => extent.splits,
        }
    }
}

/// Which large array a dispatch reads, and how much of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Reads {
    /// None: activations only.
    #[default]
    Little,
    /// A weight matrix's part, of this many bytes.
    Weights(u64),
    /// Keys and values: this many bytes for each position of a sequence's history.
    Kv(u64),
}

/// One dispatch.
pub(crate) struct Op {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) bind_group: wgpu::BindGroup,
    pub(crate) grid: [Axis; 3],
    /// Left out of steps whose columns all have one attention split.
    pub(crate) only_split: bool,
    /// For the bench alone.
    pub(crate) reads: Reads,
}

/// Dispatches in order; each sees the writes of those before it.
#[derive(Default)]
pub(crate) struct Recording {
    pub(crate) ops: Vec<Op>,
}

impl Recording {
    /// Encodes every dispatch into one compute pass.
    pub(crate) fn encode(&self, encoder: &mut wgpu::CommandEncoder, extent: Extent) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for op in self.ops_of(extent) {
            op.dispatch(&mut pass, extent);
        }
    }

    /// The dispatches of a step of this extent.
    pub(crate) fn ops_of(&self, extent: Extent) -> impl Iterator<Item = &Op> {
        self.ops
            .iter()
            .filter(move |op| extent.splits > 1 || !op.only_split)
    }

    /// As [`Recording::encode`], with the GPU's clock read before the first dispatch (at mark
    /// `start`) and after the last (at mark `end`).
    pub(crate) fn encode_between(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        extent: Extent,
        stopwatch: &Stopwatch,
        (start, end): (Option<u32>, Option<u32>),
    ) {
        let mut pass = stopwatch.begin_pass(encoder, start, end);
        for op in self.ops_of(extent) {
            op.dispatch(&mut pass, extent);
        }
    }

    /// As [`Recording::encode`], with the GPU's clock read before and after every dispatch, from
    /// mark `first` on. Returns the two marks of each dispatch and the next free mark.
    pub(crate) fn encode_each(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        extent: Extent,
        stopwatch: &Stopwatch,
        first: u32,
    ) -> (Vec<(u32, u32)>, u32) {
        let mut mark = first;
        let mut marks = Vec::with_capacity(self.ops.len());
        if stopwatch.inside_passes() {
            let mut pass = stopwatch.begin_pass(encoder, Some(mark), None);
            for op in self.ops_of(extent) {
                op.dispatch(&mut pass, extent);
                stopwatch.mark_in(&mut pass, mark + 1);
                marks.push((mark, mark + 1));
                mark += 1;
            }
            return (marks, mark + 1);
        }
        for op in self.ops_of(extent) {
            let mut pass = stopwatch.begin_pass(encoder, Some(mark), Some(mark + 1));
            op.dispatch(&mut pass, extent);
            marks.push((mark, mark + 1));
            mark += 2;
        }
        (marks, mark)
    }
}

impl Op {
    fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>, extent: Extent) {
        let [x, y, z] = self.grid.map(|axis| axis.resolve(extent));
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}
