//! Rows of one tensor of a checkpoint, on their way into planes: how they are read depends on how they are
//! stored.

use hearth_shaders::WeightFormat;

use super::repack::{self, PlaneRow};
use super::repack_grouped as grouped;
use super::weights::as_usize;
use crate::error::LoadError;
use crate::format::{Checkpoint, FormatError, Stored, TensorInfo};

/// Puts one row into its planes.
pub(super) type PutRow<'a> = dyn Fn(PlaneRow<'_>) + 'a;

/// See the module.
pub(super) struct RowSource<'a> {
    checkpoint: &'a Checkpoint,
    pub(super) tensor: &'a TensorInfo,
    /// Each column's group, where columns are not simply in groups one after the other.
    column_groups: Option<Vec<u32>>,
    /// The columns sorted by group, where that brings them in order.
    order: Option<Vec<u32>>,
}

impl<'a> RowSource<'a> {
    /// The source of a tensor's rows.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        tensor: &'a TensorInfo,
    ) -> Result<Self, FormatError> {
        let (column_groups, order) = match &tensor.stored {
            Stored::Rows(_) => (None, None),
            Stored::Grouped(parts) => {
                let groups = parts.column_groups(checkpoint, &tensor.name)?;
                let order = groups
                    .as_deref()
                    .and_then(|groups| grouped::column_order(groups, parts.group_len()));
                (groups, order)
            }
        };
        Ok(Self {
            checkpoint,
            tensor,
            column_groups,
            order,
        })
    }

    /// The GPU format of its rows, if those of its matrix are in its columns' order, or in their own.
    pub(super) fn format(&self, ordered: bool) -> WeightFormat {
        let native = match &self.tensor.stored {
            // Groups that are all over the row have no plane.
            Stored::Grouped(_) if self.column_groups.is_some() && !ordered => None,
            Stored::Grouped(parts) => Some(grouped::native_format(parts)),
            Stored::Rows(_) => repack::native_format(self.tensor.tensor_type),
        };
        native.unwrap_or(WeightFormat::F32)
    }

    /// Reads rows `first .. first + count` and hands each, by its number from 0, to `place`, with
    /// what puts it into planes of `format`.
    pub(super) fn read(
        &self,
        (first, count): (u64, u64),
        order: Option<&[u32]>,
        format: WeightFormat,
        place: &mut dyn FnMut(usize, &PutRow<'_>),
    ) -> Result<(), LoadError> {
        let tensor = self.tensor;
        let Stored::Grouped(parts) = &tensor.stored else {
            let bytes = self.checkpoint.read_rows(tensor, first, count)?;
            for (row, source) in bytes
                .chunks_exact(bytes.len() / as_usize(count))
                .enumerate()
            {
                place(row, &|plane| {
                    repack::repack_row(tensor.tensor_type, format, source, plane);
                });
            }
            return Ok(());
        };
        let rows = parts.read(self.checkpoint, tensor, (first, count), order)?;
        let group_len = as_usize(parts.group_len());
        let native = format != WeightFormat::F32;
        for row in 0..as_usize(count) {
            let numbers = rows.row(row);
            if native && parts.is_symmetric() && numbers.2.iter().any(|z| *z != parts.middle()) {
                return Err(LoadError::ZeroPoint {
                    tensor: tensor.name.clone(),
                });
            }
            place(row, &|plane| {
                if native {
                    grouped::repack_row(format, numbers, group_len, plane);
                } else {
                    let groups = self.column_groups.as_deref();
                    repack::put_floats(grouped::dequantize_row(numbers, group_len, groups), plane);
                }
            });
        }
        Ok(())
    }
}

/// The order of columns that all of the tensors want, if they want the same.
pub(super) fn common_order(sources: &[RowSource<'_>]) -> Option<Vec<u32>> {
    let (first, others) = sources.split_first()?;
    let order = first.order.as_ref()?;
    let same = others
        .iter()
        .all(|other| other.order.as_ref() == Some(order));
    same.then(|| order.clone())
}
