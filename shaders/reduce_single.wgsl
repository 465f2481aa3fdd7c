// Sums and maxima over a workgroup that is one subgroup: no shared memory, no barrier. The shape that software
// Vulkan runs fastest.
struct Lane {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
}

fn workgroup_sum(value: vec4<f32>, lane: Lane) -> vec4<f32> {
    return subgroupAdd(value);
}

fn workgroup_max(value: vec4<f32>, lane: Lane) -> vec4<f32> {
    return subgroupMax(value);
}
