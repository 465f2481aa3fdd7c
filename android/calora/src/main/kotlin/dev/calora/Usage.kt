package dev.calora

import kotlin.time.Duration
import kotlin.time.Duration.Companion.seconds

/**
 * What a response cost.
 *
 * @property promptTokens tokens of the whole prompt, the conversation so far included
 * @property cachedTokens how many of them were in the KV cache already. After a swap of adapters this is 0: the rest is
 *   what the swap cost
 * @property outputTokens tokens generated
 * @property timeToFirstToken from the first pull to the first token
 * @property prefillTokensPerSecond prompt tokens computed per second
 * @property decodeTokensPerSecond tokens generated per second after the first
 */
public data class Usage(
    val promptTokens: Int,
    val cachedTokens: Int,
    val outputTokens: Int,
    val timeToFirstToken: Duration,
    val prefillTokensPerSecond: Double,
    val decodeTokensPerSecond: Double,
)

internal fun dev.calora.ffi.Usage.toApi() =
    Usage(
        promptTokens = promptTokens.toInt(),
        cachedTokens = cachedTokens.toInt(),
        outputTokens = outputTokens.toInt(),
        timeToFirstToken = timeToFirstToken.seconds,
        prefillTokensPerSecond = prefillTokensPerSecond,
        decodeTokensPerSecond = decodeTokensPerSecond,
    )
