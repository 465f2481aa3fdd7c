package dev.calora

/**
 * Bytes that an engine takes at most, known before anything is loaded ([Engine.plan]).
 *
 * @property kind GPU or CPU
 * @property device the device's name
 * @property contextSize tokens that a session holds
 * @property sessions sessions planned for ([EngineConfig.plannedSessions])
 * @property weightBytes base weights on the device
 * @property weightsMapped whether those are pages of mapped files, which the system may drop and read again
 * @property copyBytes files in private memory beside the device's weights: only [WeightAccess.COPIED] on a GPU
 * @property cacheBytes KV caches of all planned sessions
 * @property adapterBytes resident adapters: their budget
 * @property prefixBytes beginnings of conversations: their budget
 * @property scratchBytes working memory
 * @property totalBytes all of it
 * @property availableBytes what it must fit in; null where that is not known
 * @property fits whether it fits
 * @property fittingContextSize where it does not: the largest context with which everything else fits as asked for
 * @property leastBytes where it does not: the smallest plan that [MemoryPolicy.SHRINK] settles for
 */
public data class MemoryPlan(
    val kind: DeviceKind,
    val device: String,
    val contextSize: Int,
    val sessions: Int,
    val weightBytes: Long,
    val weightsMapped: Boolean,
    val copyBytes: Long,
    val cacheBytes: Long,
    val adapterBytes: Long,
    val prefixBytes: Long,
    val scratchBytes: Long,
    val totalBytes: Long,
    val availableBytes: Long?,
    val fits: Boolean,
    val fittingContextSize: Int?,
    val leastBytes: Long?,
)

/** What is done when a model does not fit the memory that there is. */
public enum class MemoryPolicy {
    /** Loading throws [EngineException.DoesNotFit] with the numbers. */
    REFUSE,

    /**
     * A smaller context, down to 512 tokens; then a smaller budget for beginnings of conversations, down to none; then a
     * smaller one for adapters, down to 4 MiB. [Engine.memoryPlan] says what it became.
     */
    SHRINK,
}

internal fun dev.calora.ffi.MemoryPlan.toApi() =
    MemoryPlan(
        kind = kind.toApi(),
        device = device,
        contextSize = contextSize.toInt(),
        sessions = sessions.toInt(),
        weightBytes = weightBytes.atMost(),
        weightsMapped = weightsMapped,
        copyBytes = copyBytes.atMost(),
        cacheBytes = cacheBytes.atMost(),
        adapterBytes = adapterBytes.atMost(),
        prefixBytes = prefixBytes.atMost(),
        scratchBytes = scratchBytes.atMost(),
        totalBytes = totalBytes.atMost(),
        availableBytes = availableBytes?.atMost(),
        fits = fits,
        fittingContextSize = fittingContextSize?.toInt(),
        leastBytes = leastBytes?.atMost(),
    )

/** Sums of sizes that nothing bounds end at the largest number. */
private fun ULong.atMost() = minOf(this, Long.MAX_VALUE.toULong()).toLong()

internal fun MemoryPolicy.toFfi() =
    when (this) {
        MemoryPolicy.REFUSE -> dev.calora.ffi.MemoryPolicy.REFUSE
        MemoryPolicy.SHRINK -> dev.calora.ffi.MemoryPolicy.SHRINK
    }
