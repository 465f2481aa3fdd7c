package dev.calora

/**
 * How far loading is.
 *
 * @property loadedBytes bytes of weights placed
 * @property totalBytes bytes of all weights
 * @property fraction from 0 to 1; 1 exactly once, at the end
 */
public data class LoadProgress(val loadedBytes: Long, val totalBytes: Long, val fraction: Double)

internal fun dev.calora.ffi.LoadState.toApi() = LoadProgress(loadedBytes.toLong(), totalBytes.toLong(), fraction)
