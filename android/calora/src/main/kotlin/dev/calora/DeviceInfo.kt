package dev.calora

/**
 * What computes, for diagnostics.
 *
 * @property kind GPU or CPU
 * @property name the GPU's or processor's name
 * @property detail driver, backend, instruction sets and capabilities in use
 * @property activations `f32` or `int8`
 */
public data class DeviceInfo(val kind: DeviceKind, val name: String, val detail: String, val activations: String)

/** The kind of a device. */
public enum class DeviceKind {
    /** A GPU, through Vulkan or OpenGL ES. */
    GPU,

    /** The processor's own cores. */
    CPU,
}

internal fun dev.calora.ffi.DeviceKind.toApi() =
    when (this) {
        dev.calora.ffi.DeviceKind.GPU -> DeviceKind.GPU
        dev.calora.ffi.DeviceKind.CPU -> DeviceKind.CPU
    }

internal fun dev.calora.ffi.DeviceInfo.toApi() =
    DeviceInfo(
        kind = kind.toApi(),
        name = name,
        detail = detail,
        activations = activations,
    )
