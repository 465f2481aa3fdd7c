package dev.calora

import java.io.File

/**
 * How an engine is loaded; everything but the model has a default.
 *
 * @property model the model's folder: `config.json`, `model.safetensors`, `tokenizer.json`
 * @property device which device computes
 * @property activations precision of the activations that meet compressed weights
 * @property contextSize tokens that a session holds; null for the model's own number, at most 4,096
 * @property threads threads of the CPU device; null for one a core
 * @property adapterBudgetBytes bytes of adapters that stay resident after their last use, the least recently used go
 *   first; null for 64 MiB
 * @property prefixBudgetBytes bytes for beginnings of conversations that were computed before: instructions, and what
 *   [CachePolicy.RESTORE] puts aside; null for 32 MiB, 0 for none
 * @property prefixFolder a folder in which the beginnings that instructions make, and what routers measured of their
 *   examples, outlive the process, such as one in the app's `cacheDir`; within the same budget
 * @property deviceFolder a folder in which facts of the GPU outlive the process, such as one in the app's `cacheDir`: with
 *   it, each kernel is tried before its first use, what computes wrongly on this driver is not used, and compiled
 *   pipelines are kept
 * @property fallbackToCpu whether the CPU computes where the GPU is refused or lost for good; null for only with
 *   [DeviceChoice.AUTO]
 * @property weights whether base weights are computed on in their mapped files or copied first
 * @property memoryBudgetBytes bytes for everything that [Engine.plan] lists; null for what the system says is available
 * @property memoryPolicy what is done when that is not enough
 * @property plannedSessions sessions that are going to be open at once, for the plan; null for 1
 */
public data class EngineConfig(
    val model: File,
    val device: DeviceChoice = DeviceChoice.AUTO,
    val activations: Activations = Activations.AUTO,
    val contextSize: Int? = null,
    val threads: Int? = null,
    val adapterBudgetBytes: Long? = null,
    val prefixBudgetBytes: Long? = null,
    val prefixFolder: File? = null,
    val deviceFolder: File? = null,
    val fallbackToCpu: Boolean? = null,
    val weights: WeightAccess = WeightAccess.MAPPED,
    val memoryBudgetBytes: Long? = null,
    val memoryPolicy: MemoryPolicy = MemoryPolicy.REFUSE,
    val plannedSessions: Int? = null,
)

/** Where base weights are read from while the engine computes. */
public enum class WeightAccess {
    /** From the mapped files: nothing to load. Whoever truncates one in place meanwhile ends the process. */
    MAPPED,

    /** From a private copy, made while the engine loads: safe whatever happens to the files, for their bytes of memory. */
    COPIED,
}

/** Which device computes. */
public enum class DeviceChoice {
    /** The GPU where there is a real one, else the CPU. */
    AUTO,

    /** A GPU, even a software one. */
    GPU,

    /** The CPU. */
    CPU,
}

/** Precision of the activations that meet compressed weights. */
public enum class Activations {
    /** Int8 where weights are compressed, else float32. */
    AUTO,

    /** Float32: the reference mode. */
    F32,

    /** Int8: the fast mode. */
    INT8,
}

internal fun EngineConfig.toFfi() =
    dev.calora.ffi.EngineConfig(
        model = model.path,
        device =
            when (device) {
                DeviceChoice.AUTO -> dev.calora.ffi.DeviceChoice.AUTO
                DeviceChoice.GPU -> dev.calora.ffi.DeviceChoice.GPU
                DeviceChoice.CPU -> dev.calora.ffi.DeviceChoice.CPU
            },
        activations =
            when (activations) {
                Activations.AUTO -> dev.calora.ffi.Activations.AUTO
                Activations.F32 -> dev.calora.ffi.Activations.F32
                Activations.INT8 -> dev.calora.ffi.Activations.INT8
            },
        contextSize = contextSize?.unsigned("contextSize"),
        threads = threads?.unsigned("threads"),
        adapterBudgetBytes = adapterBudgetBytes?.unsigned("adapterBudgetBytes"),
        prefixBudgetBytes = prefixBudgetBytes?.unsigned("prefixBudgetBytes"),
        prefixFolder = prefixFolder?.path,
        deviceFolder = deviceFolder?.path,
        fallbackToCpu = fallbackToCpu,
        weights =
            when (weights) {
                WeightAccess.MAPPED -> dev.calora.ffi.WeightAccess.MAPPED
                WeightAccess.COPIED -> dev.calora.ffi.WeightAccess.COPIED
            },
        memoryBudgetBytes = memoryBudgetBytes?.unsigned("memoryBudgetBytes"),
        memoryPolicy = memoryPolicy.toFfi(),
        plannedSessions = plannedSessions?.unsigned("plannedSessions"),
    )
