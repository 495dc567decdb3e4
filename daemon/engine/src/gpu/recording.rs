//! A recording: the dispatches of one step as data, apart from the device that will run them.

use std::rc::Rc;
use std::time::Instant;

use super::{Gpu, Pipeline};
use crate::error::EngineError;

/// How far a grid reaches along one axis, resolved when a step is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    /// A fixed number of workgroups.
    Fixed(u32),
    /// One for each column of the step.
    Columns,
    /// One for each tile of columns.
    ColumnTiles,
    /// One for each output column.
    Outputs,
    /// One for each tile of output columns.
    OutputTiles,
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
            Self::ColumnTiles => extent.columns.div_ceil(hearth_shaders::TILE_COLUMNS),
            Self::Outputs => extent.outputs,
            Self::OutputTiles => extent.outputs.div_ceil(hearth_shaders::TILE_COLUMNS),
            Self::RowTiles { group, rows } => (extent.columns * group).div_ceil(rows),
            Self::Splits => extent.splits,
        }
    }
}

/// One dispatch.
pub(crate) struct Op {
    pub(crate) pipeline: Rc<Pipeline>,
    pub(crate) bind_group: wgpu::BindGroup,
    pub(crate) grid: [Axis; 3],
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
        for op in &self.ops {
            op.dispatch(&mut pass, extent);
        }
    }

    /// Seconds that each dispatch takes when it is repeated by itself `repeats` times.
    pub(crate) fn time_each(
        &self,
        gpu: &Gpu,
        extent: Extent,
        repeats: u32,
    ) -> Result<Vec<(String, f64)>, EngineError> {
        let run = |op: &Op, times: u32| {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for _ in 0..times {
                op.dispatch(&mut pass, extent);
            }
            drop(pass);
            let started = Instant::now();
            gpu.queue.submit([encoder.finish()]);
            gpu.wait(None)?;
            Ok::<f64, EngineError>(started.elapsed().as_secs_f64())
        };
        self.ops
            .iter()
            .map(|op| {
                run(op, 1)?;
                // The difference leaves out what a submission costs.
                let (once, many) = (run(op, 1)?, run(op, 1 + repeats)?);
                Ok((
                    op.pipeline.name.clone(),
                    (many - once).max(0.0) / f64::from(repeats),
                ))
            })
            .collect()
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
