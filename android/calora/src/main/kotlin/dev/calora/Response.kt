package dev.calora

import kotlinx.coroutines.flow.Flow

/**
 * A piece of a response.
 *
 * @property text text to append; whole characters
 * @property finishReason why the response ended; set in the last chunk
 * @property usage what the response cost; set in the last chunk
 */
public data class ResponseChunk(val text: String, val finishReason: FinishReason? = null, val usage: Usage? = null)

/**
 * A whole response.
 *
 * @property text all of its text
 * @property finishReason why it ended
 * @property usage what it cost
 */
public data class Response(val text: String, val finishReason: FinishReason, val usage: Usage)

/** Why a response ended. */
public enum class FinishReason {
    /** The model ended its turn. */
    END_OF_TURN,

    /** A stop text appeared. */
    STOP_SEQUENCE,

    /** [GenerationOptions.maxTokens] were generated. */
    MAX_TOKENS,

    /** The context is full. */
    CONTEXT_FULL,
}

/**
 * Collects a stream into one value.
 *
 * @throws EngineException what the stream throws
 */
public suspend fun Flow<ResponseChunk>.toResponse(): Response {
    val text = StringBuilder()
    var reason: FinishReason? = null
    var usage: Usage? = null
    collect {
        text.append(it.text)
        reason = it.finishReason
        usage = it.usage
    }
    return Response(
        text.toString(),
        reason ?: throw EngineException.Internal("the response has no end"),
        usage ?: throw EngineException.Internal("the response has no usage"),
    )
}

internal fun dev.calora.ffi.ResponseChunk.toApi() = ResponseChunk(text, finishReason?.toApi(), usage?.toApi())

private fun dev.calora.ffi.FinishReason.toApi() =
    when (this) {
        dev.calora.ffi.FinishReason.END_OF_TURN -> FinishReason.END_OF_TURN
        dev.calora.ffi.FinishReason.STOP_SEQUENCE -> FinishReason.STOP_SEQUENCE
        dev.calora.ffi.FinishReason.MAX_TOKENS -> FinishReason.MAX_TOKENS
        dev.calora.ffi.FinishReason.CONTEXT_FULL -> FinishReason.CONTEXT_FULL
    }
