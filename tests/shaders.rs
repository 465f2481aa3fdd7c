//! Every shader that the host can build validates, and translates to what phones and desktops run.
#![allow(clippy::unwrap_used, clippy::panic)]

use naga::back::{glsl, msl, spv};
use naga::proc::BoundsCheckPolicies;
use naga::valid::{Capabilities, ModuleInfo, SubgroupOperationSet, ValidationFlags, Validator};

/// What a backend cannot express, by a word of the kernel's name and the reason; anything else must translate.
/// Devices behind such a backend do not report the feature, so the kernel is never chosen there.
const MSL_CANNOT: &[(&str, &str)] = &[];
const GLSL_CANNOT: &[(&str, &str)] = &[("Half", "GLSL has no 16-bit storage")];

fn module(name: &str, wgsl: &str) -> (naga::Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(wgsl)
        .unwrap_or_else(|e| panic!("{name} does not parse:\n{}", e.emit_to_string(wgsl)));
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    validator.subgroup_operations(SubgroupOperationSet::all());
    let info = validator
        .validate(&module)
        .unwrap_or_else(|e| panic!("{name} does not validate:\n{}", e.emit_to_string(wgsl)));
    (module, info)
}

/// The translation failed exactly where the table says that it must.
fn expect<T, E: std::fmt::Display>(backend: &str, name: &str, result: Result<T, E>, cannot: &[(&str, &str)]) {
    let known = cannot.iter().find(|(word, _)| name.contains(word));
    match (result, known) {
        (Ok(_), None) | (Err(_), Some(_)) => {}
        (Err(error), None) => panic!("{backend} of {name}: {error}"),
        (Ok(_), Some((_, why))) => {
            panic!("{backend} of {name} works now, although: {why}; shorten the table")
        }
    }
}

#[test]
fn every_combination_validates_and_translates() {
    let shaders = calora::gpu::shaders();
    assert!(shaders.len() > 400, "{} combinations are too few", shaders.len());
    let mut storage_buffers = 0;
    for shader in &shaders {
        let (module, info) = module(&shader.name, &shader.wgsl);
        let buffers = module
            .global_variables
            .iter()
            .filter(|(_, v)| matches!(v.space, naga::AddressSpace::Storage { .. }))
            .count();
        assert!(buffers <= 8, "{} binds {buffers} storage buffers, WebGPU allows 8", shader.name);
        storage_buffers = storage_buffers.max(buffers);
        let memory: u32 = module
            .global_variables
            .iter()
            .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
            .map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()))
            .sum();
        assert!(memory <= 16 << 10, "{} takes {memory} bytes of workgroup memory", shader.name);

        let options = spv::Options::default();
        expect("SPIR-V", &shader.name, spv::write_vec(&module, &info, &options, None), &[]);
        let options =
            msl::Options { lang_version: (3, 0), fake_missing_bindings: true, ..Default::default() };
        let pipeline = msl::PipelineOptions::default();
        expect("MSL", &shader.name, msl::write_string(&module, &info, &options, &pipeline), MSL_CANNOT);
        let mut text = String::new();
        let options = glsl::Options {
            version: glsl::Version::Embedded { version: 310, is_webgl: false },
            ..Default::default()
        };
        let pipeline = glsl::PipelineOptions {
            shader_stage: naga::ShaderStage::Compute,
            entry_point: "main".into(),
            multiview: None,
        };
        let written =
            glsl::Writer::new(&mut text, &module, &info, &options, &pipeline, BoundsCheckPolicies::default())
                .and_then(|mut writer| writer.write().map(drop));
        expect("GLSL", &shader.name, written, GLSL_CANNOT);
    }
    assert_eq!(storage_buffers, 8, "the table of bindings in shaders/README.md is out of date");
}

/// Mesa 22.3.6 folds `unpack2x16float` of a constant to a vector whose second element is zero.
#[test]
fn no_shader_unpacks_a_literal() {
    for shader in calora::gpu::shaders() {
        for (at, _) in shader.wgsl.match_indices("unpack2x16float(") {
            let argument = &shader.wgsl[at + "unpack2x16float(".len()..];
            let first = argument.chars().next().unwrap();
            assert!(!first.is_ascii_digit(), "{} unpacks a literal", shader.name);
        }
    }
}
