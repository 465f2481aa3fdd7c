package dev.calora

import java.io.File

/**
 * What [Engine.benchmarkSwaps] measures.
 *
 * @property folder task files or PEFT folders of this model, more than [resident]
 * @property resident how many of them are resident at once
 * @property promptTokens tokens of the conversation in which the task is swapped
 * @property runs swaps for each cache policy
 */
public data class SwapBenchmarkOptions(
    val folder: File,
    val resident: Int = 16,
    val promptTokens: Int = 128,
    val runs: Int = 20,
)

internal fun SwapBenchmarkOptions.toFfi() =
    dev.calora.ffi.SwapBenchmarkOptions(
        folder = folder.path,
        resident = resident.unsigned("resident"),
        promptTokens = promptTokens.unsigned("promptTokens"),
        runs = runs.unsigned("runs"),
    )
