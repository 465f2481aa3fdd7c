package dev.calora

/**
 * What an engine has computed since it was loaded.
 *
 * @property passes passes of the device
 * @property tokens tokens in them, prompts and answers alike
 */
public data class Statistics(val passes: Long, val tokens: Long)

internal fun dev.calora.ffi.Statistics.toApi() = Statistics(passes.toLong(), tokens.toLong())
