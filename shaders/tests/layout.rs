//! The Rust side says the same as the WGSL: parameter blocks, bindings, constants. Without a GPU.

#![allow(
    clippy::unwrap_used,
    reason = "in a test, a failure where none may be is a failed test"
)]

use std::collections::BTreeMap;
use std::mem::offset_of;

use hearth_shaders::params::{
    AttentionParams, BiasParams, CombineParams, CopyParams, EmbedParams, GatherParams,
    MatrixParams, NormParams, STEP_HEADER_WORDS, SampleParams, Sampling, TOKEN_FROM_SLOT,
};
use hearth_shaders::{
    BindingKind, COOPERATIVE_BYTES, COOPERATIVE_COLUMNS, COOPERATIVE_PAIRS, COOPERATIVE_THREADS,
    GemvInput, Kernel,
};
use naga::{AddressSpace, Handle, Literal, Module, Scalar, ScalarKind, StorageAccess, TypeInner};

/// A member: offset in bytes, and whether it is a float.
type Members = BTreeMap<String, (usize, bool)>;

/// A type of a parameter: how many words, and whether they are floats.
trait Words {
    const COUNT: usize;
    const FLOAT: bool;
}

impl Words for u32 {
    const COUNT: usize = 1;
    const FLOAT: bool = false;
}

impl Words for f32 {
    const COUNT: usize = 1;
    const FLOAT: bool = true;
}

impl<const N: usize> Words for [u32; N] {
    const COUNT: usize = N;
    const FLOAT: bool = false;
}

fn words<P, T: Words>(_: fn(&P) -> &T) -> (usize, bool) {
    (T::COUNT, T::FLOAT)
}

/// (size, members) of a `#[repr(C)]` struct. Words called `pad` are WGSL's `pad0`, `pad1`, ....
macro_rules! layout {
    ($name:ident { $($field:ident),* $(,)? }) => {{
        let mut members = Members::new();
        let mut covered = 0;
        $(
            let (count, float) = words(|p: &$name| &p.$field);
            covered += 4 * count;
            for i in 0..count {
                let suffix = if count == 1 { String::new() } else { i.to_string() };
                let name = format!("{}{suffix}", stringify!($field));
                members.insert(name, (offset_of!($name, $field) + 4 * i, float));
            }
        )*
        assert_eq!(covered, size_of::<$name>(), "{}: a field is missing here", stringify!($name));
        (stringify!($name), size_of::<$name>(), members)
    }};
}

fn layouts() -> Vec<(&'static str, usize, Members)> {
    vec![
        layout!(MatrixParams {
            pairs,
            blocks,
            first_row,
            rows,
            out_stride,
            q_rows,
            kv_rows,
            head_dim,
            rope_pairs,
            block_len,
            has_bias,
            columns_max,
            eps,
            pad,
        }),
        layout!(EmbedParams {
            blocks,
            first_row,
            rows,
            vocab
        }),
        layout!(NormParams {
            blocks,
            outputs,
            eps,
            pad
        }),
        layout!(GatherParams { blocks, pad }),
        layout!(BiasParams { groups, pad }),
        layout!(AttentionParams {
            head_dim,
            kv_heads,
            block_len,
            splits_max,
            window,
            scale,
            group,
            pad,
        }),
        layout!(CombineParams {
            blocks,
            heads,
            head_dim,
            splits_max,
            direct,
            pad,
        }),
        layout!(SampleParams {
            vocab,
            ring_len,
            parts,
            pad,
        }),
        layout!(CopyParams { count, pad }),
        layout!(Sampling {
            temperature,
            top_p,
            min_p,
            repeat_penalty,
            frequency_penalty,
            presence_penalty,
            top_k,
            penalties,
            seed_low,
            seed_high,
            pad,
        }),
    ]
}

fn module(kernel: Kernel) -> Module {
    let source = kernel.source();
    let mut options = naga::front::wgsl::Options::new();
    if kernel.uses_cooperative_matrix() {
        options.capabilities = naga::valid::Capabilities::all();
    }
    naga::front::wgsl::Frontend::new_with_options(options)
        .parse(&source)
        .unwrap_or_else(|e| panic!("{}: {}", kernel.name(), e.emit_to_string(&source)))
}

/// (name, size, members) of a WGSL struct of scalars.
fn reflect(module: &Module, ty: Handle<naga::Type>) -> (String, usize, Members) {
    let ty = &module.types[ty];
    let name = ty.name.clone().unwrap();
    let TypeInner::Struct { members, span } = &ty.inner else {
        panic!("{name} is no struct")
    };
    let members = members
        .iter()
        .map(|member| {
            let TypeInner::Scalar(Scalar { kind, width: 4 }) = module.types[member.ty].inner else {
                panic!("{name}: a member is no 4-byte scalar")
            };
            let facts = (member.offset as usize, kind == ScalarKind::Float);
            (member.name.clone().unwrap(), facts)
        })
        .collect();
    (name, *span as usize, members)
}

fn assert_same(kernel: Kernel, module: &Module, ty: Handle<naga::Type>) -> String {
    let (name, size, members) = reflect(module, ty);
    let layouts = layouts();
    let (_, rust_size, rust_members) = layouts
        .iter()
        .find(|(rust_name, ..)| *rust_name == name)
        .unwrap_or_else(|| panic!("{}: {name} has no Rust struct in this test", kernel.name()));
    assert_eq!(&members, rust_members, "{}: {name}", kernel.name());
    assert_eq!(size, *rust_size, "{}: size of {name}", kernel.name());
    name
}

#[test]
fn parameter_blocks_have_one_layout() {
    let mut seen = std::collections::BTreeSet::new();
    for kernel in Kernel::all() {
        let module = module(kernel);
        for (_, global) in module.global_variables.iter() {
            if global.space == AddressSpace::Uniform {
                seen.insert(assert_same(kernel, &module, global.ty));
            }
            // Arrays of structs: the slots' sampling settings.
            if let TypeInner::Array { base, stride, .. } = module.types[global.ty].inner
                && matches!(global.space, AddressSpace::Storage { .. })
                && matches!(module.types[base].inner, TypeInner::Struct { .. })
            {
                let name = assert_same(kernel, &module, base);
                let rust = layouts().into_iter().find(|(n, ..)| *n == name).unwrap();
                assert_eq!(stride as usize, rust.1, "stride of {name}");
                seen.insert(name);
            }
        }
    }
    let all: Vec<&str> = layouts().iter().map(|(name, ..)| *name).collect();
    assert_eq!(seen.len(), all.len(), "seen {seen:?} of {all:?}");
}

fn image(module: &Module, ty: Handle<naga::Type>) -> BindingKind {
    let TypeInner::Image { class, .. } = module.types[ty].inner else {
        panic!("a binding that is no image")
    };
    let naga::ImageClass::Storage { format, access } = class else {
        panic!("{class:?}: only storage images are bound")
    };
    let read = access == StorageAccess::LOAD;
    match format {
        naga::StorageFormat::Rgba32Uint if access == StorageAccess::STORE => {
            BindingKind::WriteImage
        }
        naga::StorageFormat::Rgba32Uint if read => BindingKind::Image { words: 4 },
        naga::StorageFormat::R32Uint if read => BindingKind::Image { words: 1 },
        other => panic!("{other:?}, {access:?}: no such image is bound"),
    }
}

#[test]
fn bindings_are_the_modules_own() {
    for kernel in Kernel::all() {
        let module = module(kernel);
        let mut found: Vec<(u32, BindingKind)> = module
            .global_variables
            .iter()
            .filter_map(|(_, global)| {
                let binding = global.binding.as_ref()?;
                assert_eq!(binding.group, 0, "{}", kernel.name());
                let kind = match global.space {
                    AddressSpace::Uniform => BindingKind::Uniform,
                    AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => {
                        BindingKind::Write
                    }
                    AddressSpace::Storage { .. } => BindingKind::Read,
                    AddressSpace::Handle => image(&module, global.ty),
                    space => panic!("{}: a binding in {space:?}", kernel.name()),
                };
                Some((binding.binding, kind))
            })
            .collect();
        found.sort_by_key(|(binding, _)| *binding);
        let listed = kernel.bindings();
        assert_eq!(listed, found, "{}", kernel.name());
        let storage = listed
            .iter()
            .filter(|(_, kind)| matches!(kind, BindingKind::Read | BindingKind::Write))
            .count();
        // WebGPU promises 8. The fused norm takes one more, and is used where there is room.
        let most = if let Kernel::Gemv(_, _, GemvInput::Normed) = kernel {
            9
        } else {
            8
        };
        assert!(
            storage <= most,
            "{}: {storage} storage buffers",
            kernel.name()
        );
    }
}

/// The value of a module's `const name: u32`, if it has one.
fn constant(module: &Module, name: &str) -> Option<u32> {
    let (_, constant) = module
        .constants
        .iter()
        .find(|(_, c)| c.name.as_deref() == Some(name))?;
    match module.global_expressions[constant.init] {
        naga::Expression::Literal(Literal::U32(value)) => Some(value),
        _ => panic!("{name} is no u32 literal"),
    }
}

#[test]
fn constants_agree() {
    let mut found = BTreeMap::new();
    for kernel in Kernel::all() {
        let module = module(kernel);
        let mut check = |name: &'static str, wanted: u32| {
            if let Some(value) = constant(&module, name) {
                assert_eq!(value, wanted, "{}: {name}", kernel.name());
                *found.entry(name).or_insert(0) += 1;
            }
        };
        check("STEP_HEADER", u32::try_from(STEP_HEADER_WORDS).unwrap());
        check("TOKEN_FROM_SLOT", TOKEN_FROM_SLOT);
        match kernel {
            Kernel::GemmRows(.., columns) => check("TILE_COLUMNS", columns),
            Kernel::Gemm(_, tile) => {
                check("TILE_COLUMNS", tile.columns());
                check("TILE_PAIRS", tile.pairs());
                check("WG", tile.threads());
            }
            Kernel::GemmCoop(_) => {
                check("TILE_COLUMNS", COOPERATIVE_COLUMNS);
                check("TILE_ROWS", 2 * COOPERATIVE_PAIRS);
                check("WG", COOPERATIVE_THREADS);
            }
            _ => {}
        }
    }
    assert_eq!(found.len(), 6, "{found:?}");
}

/// Bytes of a module's workgroup memory.
fn workgroup_bytes(module: &Module) -> u32 {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    module
        .global_variables
        .iter()
        .filter(|(_, global)| global.space == AddressSpace::WorkGroup)
        .map(|(_, global)| layouter[global.ty].size)
        .sum()
}

#[test]
fn tiles_fit_what_they_promise() {
    for kernel in Kernel::all() {
        let most = match kernel {
            Kernel::Gemm(m, tile) => tile.workgroup_bytes(m.activations),
            Kernel::GemmCoop(_) => COOPERATIVE_BYTES,
            _ => continue,
        };
        let bytes = workgroup_bytes(&module(kernel));
        assert!(bytes <= most, "{}: {bytes} of {most}", kernel.name());
    }
}
