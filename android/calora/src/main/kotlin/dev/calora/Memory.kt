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

/** How urgently memory is wanted. */
public enum class MemoryPressure {
    /** Adapters that no session uses go, and beginnings of conversations that were put aside. */
    MODERATE,

    /** KV caches of idle sessions go too; their next response computes the conversation anew. */
    CRITICAL,
}

/**
 * What [Engine.trim] freed.
 *
 * @property freedBytes bytes freed
 * @property evictedAdapters adapters that are no longer resident
 * @property droppedCaches sessions whose cache was dropped
 */
public data class TrimReport(val freedBytes: Long, val evictedAdapters: Int, val droppedCaches: Int)

internal fun dev.calora.ffi.MemoryUse.toApi() =
    MemoryUse(
        weightBytes = weightBytes.toLong(),
        cacheBytes = cacheBytes.toLong(),
        adapterBytes = adapterBytes.toLong(),
        scratchBytes = scratchBytes.toLong(),
        prefixBytes = prefixBytes.toLong(),
        decryptedBytes = decryptedBytes.toLong(),
    )

internal fun dev.calora.ffi.TrimReport.toApi() =
    TrimReport(freedBytes.toLong(), evictedAdapters.toInt(), droppedCaches.toInt())

internal fun MemoryPressure.toFfi() =
    when (this) {
        MemoryPressure.MODERATE -> dev.calora.ffi.MemoryPressure.MODERATE
        MemoryPressure.CRITICAL -> dev.calora.ffi.MemoryPressure.CRITICAL
    }
