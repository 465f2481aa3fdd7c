package dev.calora.assistant

import dev.calora.AdapterInfo
import dev.calora.Engine
import dev.calora.Usage

/** What "copy diagnostics" copies: device, model, memory, speed. No prompt, no answer. */
internal suspend fun diagnosticsOf(engine: Engine, adapters: List<AdapterInfo>, last: Usage?): String {
    val (model, device) = engine.modelInfo to engine.deviceInfo
    val (memory, statistics) = engine.memory() to engine.statistics()
    return buildString {
        appendLine("calora ${Engine.version}")
        appendLine("device: ${device.kind} ${device.name}, ${device.activations} activations")
        appendLine("driver: ${device.detail}")
        appendLine(
            "model: ${model.architecture}, ${model.scheme}, ${model.layers} layers of ${model.hiddenSize}, " +
                "vocabulary ${model.vocabularySize}, context ${model.contextSize} of ${model.maxContextSize}"
        )
        for (adapter in adapters) appendLine("adapter: ${adapter.name}, rank ${adapter.rank}, ${adapter.bytes} bytes")
        appendLine(
            "memory: weights ${memory.weightBytes}, caches ${memory.cacheBytes}, adapters ${memory.adapterBytes}, " +
                "scratch ${memory.scratchBytes} bytes"
        )
        appendLine("computed: ${statistics.tokens} tokens in ${statistics.passes} passes")
        last?.let {
            appendLine(
                "last answer: ${it.promptTokens} prompt tokens (${it.cachedTokens} cached), ${it.outputTokens} out, " +
                    "first after ${it.timeToFirstToken}, prefill %.1f/s, decode %.1f/s"
                        .format(it.prefillTokensPerSecond, it.decodeTokensPerSecond)
            )
        }
    }
}
