//! Every kernel parses, validates, and translates to SPIR-V, MSL and HLSL, without a GPU.

use hearth_shaders::Kernel;
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, SubgroupOperationSet, ValidationFlags, Validator};

fn parse(kernel: Kernel) -> (naga::Module, ModuleInfo) {
    let source = kernel.source();
    let mut options = naga::front::wgsl::Options::new();
    if kernel.uses_cooperative_matrix() {
        options.capabilities = Capabilities::all();
    }
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(&source)
        .unwrap_or_else(|e| panic!("{}: {}", kernel.name(), e.emit_to_string(&source)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}: {}", kernel.name(), e.emit_to_string(&source)));
    (module, info)
}

fn resolved(kernel: Kernel) -> (naga::Module, ModuleInfo) {
    let (module, info) = parse(kernel);
    let constants = naga::back::PipelineConstants::default();
    let (module, info) =
        naga::back::pipeline_constants::process_overrides(&module, &info, None, &constants)
            .unwrap_or_else(|e| panic!("{}: {e}", kernel.name()));
    (module.into_owned(), info.into_owned())
}

#[test]
fn kernels_validate() {
    for kernel in Kernel::all() {
        parse(kernel);
    }
}

#[test]
fn kernels_translate() {
    for kernel in Kernel::all() {
        let (module, info) = resolved(kernel);
        let options = spv::Options {
            lang_version: (1, 3),
            ..Default::default()
        };
        spv::write_vec(&module, &info, &options, None)
            .unwrap_or_else(|e| panic!("{} to SPIR-V: {e}", kernel.name()));
        if kernel.uses_cooperative_matrix() {
            // Matrices of 16 by 16 are Vulkan's alone.
            continue;
        }
        let options = msl::Options {
            lang_version: (2, 4),
            fake_missing_bindings: true,
            ..Default::default()
        };
        msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{} to MSL: {e}", kernel.name()));
        let options = hlsl::Options {
            shader_model: hlsl::ShaderModel::V6_4,
            fake_missing_bindings: true,
            ..Default::default()
        };
        let mut text = String::new();
        let pipeline = hlsl::PipelineOptions::default();
        hlsl::Writer::new(&mut text, &options, &pipeline)
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{} to HLSL: {e}", kernel.name()));
        assert!(!text.is_empty());
    }
}
