package dev.calora

import java.io.File

/**
 * What [Engine.benchmark] measures.
 *
 * @property adapters adapters to measure with; empty for none
 * @property promptTokens tokens of the prompt
 * @property outputTokens tokens of the answer
 * @property runs runs; medians are reported
 */
public data class BenchmarkOptions(
    val adapters: List<File> = emptyList(),
    val promptTokens: Int = 128,
    val outputTokens: Int = 32,
    val runs: Int = 5,
)

internal fun BenchmarkOptions.toFfi() =
    dev.calora.ffi.BenchmarkOptions(
        adapters = adapters.map { it.path },
        promptTokens = promptTokens.unsigned("promptTokens"),
        outputTokens = outputTokens.unsigned("outputTokens"),
        runs = runs.unsigned("runs"),
    )
