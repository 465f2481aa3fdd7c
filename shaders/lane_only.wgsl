// The invocation, for kernels that never reduce over a workgroup.
struct Lane {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
}
