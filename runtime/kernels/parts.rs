//! The shader files, each under its own name; kernels list which ones they join.

macro_rules! parts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(crate) const $name: &str = include_str!(concat!("../../shaders/", $file, ".wgsl"));)*

        /// All of them.
        pub(crate) const ALL: &[&str] = &[$($name),*];
    };
}

parts! {
    ACTIVATIONS_F32 = "activations_f32";
    ACTIVATIONS_INT8 = "activations_int8";
    ARGMAX = "argmax";
    ATTENTION = "attention";
    ATTENTION_COMBINE = "attention_combine";
    BATCH_SPLIT = "batch_split";
    BLOCK = "block";
    CACHE_F16 = "cache_f16";
    CACHE_F32 = "cache_f32";
    DOWN_F16 = "down_f16";
    DOWN_F32 = "down_f32";
    DOWN_HALF = "down_half";
    EMBED = "embed";
    EXPAND = "expand";
    LANE_ONLY = "lane_only";
    MATMUL_LANES = "matmul_lanes";
    MATMUL_SPLIT = "matmul_split";
    MATVEC_LANES = "matvec_lanes";
    MATVEC_SPLIT = "matvec_split";
    PREPARE = "prepare";
    PROJECT = "project";
    QUANTISE_INT8 = "quantise_int8";
    QUANTISE_NONE = "quantise_none";
    REDUCE_SINGLE = "reduce_single";
    REDUCE_SUBGROUP = "reduce_subgroup";
    REDUCE_TREE = "reduce_tree";
    ROPE = "rope";
    SCALES_F16 = "scales_f16";
    SCALES_F32 = "scales_f32";
    SCALES_NONE = "scales_none";
    SHRINK = "shrink";
    TAIL_EXPANDED = "tail_expanded";
    TAIL_F16 = "tail_f16";
    TAIL_F32 = "tail_f32";
    TAIL_HALF = "tail_half";
    TAIL_NONE = "tail_none";
    WEIGHTS_BF16 = "weights_bf16";
    WEIGHTS_F16 = "weights_f16";
    WEIGHTS_F32 = "weights_f32";
    WEIGHTS_INT2 = "weights_int2";
    WEIGHTS_INT3 = "weights_int3";
    WEIGHTS_INT4 = "weights_int4";
    WEIGHTS_INT8 = "weights_int8";
    ZEROS_STORED = "zeros_stored";
    ZEROS_SYMMETRIC = "zeros_symmetric";
}
