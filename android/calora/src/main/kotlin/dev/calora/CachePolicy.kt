package dev.calora

/**
 * What becomes of a conversation's keys and values when a session goes on with other adapters.
 *
 * They were computed through the old adapters. Exact policies never show them to the new ones: the next response is what
 * a new session with this conversation would give.
 */
public enum class CachePolicy {
    /** Computed anew with the next response. Exact; costs a prefill of the conversation. */
    RECOMPUTE,

    /**
     * What the old adapters computed is put aside, and what the new ones had computed of this conversation before comes
     * back. Exact; costs memory within [EngineConfig.prefixBudgetBytes].
     */
    RESTORE,

    /** The instructions keep their keys and values; the rest is computed anew. Approximate. */
    KEEP_INSTRUCTIONS,

    /** Everything stays and nothing is computed. Approximate; for adapters that differ little. */
    KEEP,
}

/**
 * What a switch keeps and what it costs.
 *
 * @property transcriptTokens tokens of the conversation under the new adapters
 * @property cachedTokens how many of them need not be computed with the next response
 * @property inexactTokens how many of those were computed through other adapters; 0 with an exact policy
 * @property putAsideBytes bytes newly put aside for a way back; 0 where the budget has no room for them
 */
public data class SwitchReport(
    val transcriptTokens: Int,
    val cachedTokens: Int,
    val inexactTokens: Int,
    val putAsideBytes: Long,
) {
    /** Whether the next response is what a new session would give. */
    public val isExact: Boolean
        get() = inexactTokens == 0
}

internal fun dev.calora.ffi.SwitchReport.toApi() =
    SwitchReport(transcriptTokens.toInt(), cachedTokens.toInt(), inexactTokens.toInt(), putAsideBytes.toLong())

internal fun CachePolicy.toFfi() =
    when (this) {
        CachePolicy.RECOMPUTE -> dev.calora.ffi.CachePolicy.RECOMPUTE
        CachePolicy.RESTORE -> dev.calora.ffi.CachePolicy.RESTORE
        CachePolicy.KEEP_INSTRUCTIONS -> dev.calora.ffi.CachePolicy.KEEP_INSTRUCTIONS
        CachePolicy.KEEP -> dev.calora.ffi.CachePolicy.KEEP
    }
