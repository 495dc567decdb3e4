//! Puts prefill's attention into a recording.

use hearth_shaders::{ActivationFormat, Kernel, RowsOut};

use super::recorder::Recorder;
use crate::error::EngineError;
use crate::gpu::{self, Axis, Bound, Buffer, Reads};

impl Recorder<'_> {
    /// attended = softmax(q K^T / sqrt(head_dim)) V, for many columns.
    pub(crate) fn attention_long(
        &mut self,
        k: &Buffer,
        v: &Buffer,
        format: ActivationFormat,
    ) -> Result<(), EngineError> {
        let c = self.config;
        let params = gpu::uniform(self.gpu, &self.attention_params(1));
        let group = c.n_heads / c.n_kv_heads;
        let plan = gpu::prefill_attention(c.head_dim, group, format, self.cooperative_matrix);
        let grid = [Axis::Fixed(c.n_kv_heads), plan.tiles, Axis::Fixed(1)];
        let partial = plan.kernel == Kernel::AttentionPrefill(RowsOut::Partial);
        let s = self.scratch;
        let mut bound: Vec<Bound<'_>> = [&params, &s.q, k, v, &s.step].map(Bound::from).into();
        if partial {
            bound.extend([&s.partial, &s.sums].map(Bound::from));
        } else {
            bound.push(s.attended.bound(format));
        }
        self.push(plan.kernel, &plan.overrides, &bound, grid)?;
        self.reads(Reads::Kv(4 * u64::from(c.n_kv_heads * c.head_dim)));
        if partial {
            self.combine(1, false, format)?;
        }
        Ok(())
    }
}
