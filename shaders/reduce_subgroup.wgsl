// Sums and maxima over a workgroup: within subgroups first, then over the few subgroup results in shared memory.
struct Lane {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
}

var<workgroup> lanes: array<vec4<f32>, WORKGROUP>;

fn workgroup_sum(value: vec4<f32>, lane: Lane) -> vec4<f32> {
    let own = subgroupAdd(value);
    if lane.in_subgroup == 0u {
        lanes[lane.subgroup] = own;
    }
    workgroupBarrier();
    var total = vec4<f32>(0.0);
    for (var s = 0u; s < lane.subgroups; s++) {
        total += lanes[s];
    }
    // Nobody may start the next reduction before everybody has read this one's parts.
    workgroupBarrier();
    return total;
}

fn workgroup_max(value: vec4<f32>, lane: Lane) -> vec4<f32> {
    let own = subgroupMax(value);
    if lane.in_subgroup == 0u {
        lanes[lane.subgroup] = own;
    }
    workgroupBarrier();
    var largest = lanes[0];
    for (var s = 1u; s < lane.subgroups; s++) {
        largest = max(largest, lanes[s]);
    }
    workgroupBarrier();
    return largest;
}
