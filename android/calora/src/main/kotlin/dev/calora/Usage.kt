package dev.calora

import kotlin.time.Duration
import kotlin.time.Duration.Companion.seconds

/**
 * What a response cost.
 *
 * @property promptTokens tokens of the whole prompt, the conversation so far included
 * @property cachedTokens how many of them were computed already. After a swap of adapters the rest is what the swap cost
 * @property inexactTokens how many of those other adapters had computed, as [CachePolicy.KEEP] allows; 0 else
 * @property outputTokens tokens generated
 * @property timeToFirstToken from the first pull to the first token
 * @property prefillTokensPerSecond prompt tokens computed per second
 * @property decodeTokensPerSecond tokens generated per second after the first
 */
public data class Usage(
    val promptTokens: Int,
    val cachedTokens: Int,
    val inexactTokens: Int,
    val outputTokens: Int,
    val timeToFirstToken: Duration,
    val prefillTokensPerSecond: Double,
    val decodeTokensPerSecond: Double,
)

internal fun dev.calora.ffi.Usage.toApi() =
    Usage(
        promptTokens = promptTokens.toInt(),
        cachedTokens = cachedTokens.toInt(),
        inexactTokens = inexactTokens.toInt(),
        outputTokens = outputTokens.toInt(),
        timeToFirstToken = timeToFirstToken.seconds,
        prefillTokensPerSecond = prefillTokensPerSecond,
        decodeTokensPerSecond = decodeTokensPerSecond,
    )
