package dev.calora

/**
 * Bytes that the engine holds.
 *
 * @property weightBytes base weights; on the CPU these are mapped pages, which the system may drop and read again
 * @property cacheBytes KV caches of all sessions
 * @property adapterBytes resident adapters
 * @property scratchBytes working memory
 * @property prefixBytes beginnings of conversations that were put aside, in ordinary memory
 * @property decryptedBytes encrypted adapters that are open, decrypted
 */
public data class MemoryUse(
    val weightBytes: Long,
    val cacheBytes: Long,
    val adapterBytes: Long,
    val scratchBytes: Long,
    val prefixBytes: Long,
    val decryptedBytes: Long,
) {
    /** All of it. */
    public val totalBytes: Long
        get() = weightBytes + cacheBytes + adapterBytes + scratchBytes + prefixBytes + decryptedBytes
}

/**
 * Adapters that are on the device together.
 *
 * @property names their names
 * @property bytes bytes of their branches in their files, close to what they take on the device
 * @property inUse whether a session uses them, or they were preloaded; else the budget keeps them
 */
public data class ResidentAdapters(val names: List<String>, val bytes: Long, val inUse: Boolean)

/**
 * What of the adapters is on the device.
 *
 * @property adapters every list of adapters
 * @property budgetBytes bytes that may stay after their last use
 * @property usedBytes bytes that are kept within the budget, in use or not
 */
public data class Residency(val adapters: List<ResidentAdapters>, val budgetBytes: Long, val usedBytes: Long)

/** How urgently memory is wanted. */
public enum class MemoryPressure {
    /** Adapters that no session uses go, and beginnings of conversations that were put aside. */
    MODERATE,

    /**
     * KV caches of sessions that are not responding go too, working memory, and the pages of mapped weights; the next
     * response computes its conversation anew.
     */
    CRITICAL,
}

/**
 * What [Engine.trim] freed.
 *
 * @property freedBytes bytes freed: the sum of the next four
 * @property adapterBytes of adapters
 * @property prefixBytes of beginnings of conversations
 * @property cacheBytes of KV caches
 * @property scratchBytes of working memory
 * @property mappedBytes bytes of mapped weights whose pages went back to the system, which may keep them for the next use
 * @property evictedAdapters adapters that are no longer resident
 * @property droppedCaches sessions whose cache was dropped
 */
public data class TrimReport(
    val freedBytes: Long,
    val adapterBytes: Long,
    val prefixBytes: Long,
    val cacheBytes: Long,
    val scratchBytes: Long,
    val mappedBytes: Long,
    val evictedAdapters: Int,
    val droppedCaches: Int,
)

internal fun dev.calora.ffi.MemoryUse.toApi() =
    MemoryUse(
        weightBytes = weightBytes.toLong(),
        cacheBytes = cacheBytes.toLong(),
        adapterBytes = adapterBytes.toLong(),
        scratchBytes = scratchBytes.toLong(),
        prefixBytes = prefixBytes.toLong(),
        decryptedBytes = decryptedBytes.toLong(),
    )

internal fun dev.calora.ffi.Residency.toApi() =
    Residency(
        adapters.map { ResidentAdapters(it.names, it.bytes.toLong(), it.inUse) },
        budgetBytes.toLong(),
        usedBytes.toLong(),
    )

internal fun dev.calora.ffi.TrimReport.toApi() =
    TrimReport(
        freedBytes = freedBytes.toLong(),
        adapterBytes = adapterBytes.toLong(),
        prefixBytes = prefixBytes.toLong(),
        cacheBytes = cacheBytes.toLong(),
        scratchBytes = scratchBytes.toLong(),
        mappedBytes = mappedBytes.toLong(),
        evictedAdapters = evictedAdapters.toInt(),
        droppedCaches = droppedCaches.toInt(),
    )

internal fun MemoryPressure.toFfi() =
    when (this) {
        MemoryPressure.MODERATE -> dev.calora.ffi.MemoryPressure.MODERATE
        MemoryPressure.CRITICAL -> dev.calora.ffi.MemoryPressure.CRITICAL
    }
