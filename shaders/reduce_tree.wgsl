// Sums and maxima over a workgroup through shared memory: works on every device. WORKGROUP is a power of two.
struct Lane {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> lanes: array<vec4<f32>, WORKGROUP>;

fn workgroup_sum(value: vec4<f32>, lane: Lane) -> vec4<f32> {
    lanes[lane.index] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half >>= 1u) {
        if lane.index < half {
            lanes[lane.index] += lanes[lane.index + half];
        }
        workgroupBarrier();
    }
    let total = lanes[0];
    // Nobody may start the next reduction before everybody has read this one's result.
    workgroupBarrier();
    return total;
}

fn workgroup_max(value: vec4<f32>, lane: Lane) -> vec4<f32> {
    lanes[lane.index] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half >>= 1u) {
        if lane.index < half {
            lanes[lane.index] = max(lanes[lane.index], lanes[lane.index + half]);
        }
        workgroupBarrier();
    }
    let largest = lanes[0];
    workgroupBarrier();
    return largest;
}
