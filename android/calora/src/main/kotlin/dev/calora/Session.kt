package dev.calora

import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow

/**
 * A conversation: one KV cache, one transcript, one response at a time. [Engine.session] makes it.
 *
 * A request that is cancelled or fails leaves the session exactly as it was before.
 */
public class Session
internal constructor(private val ffi: dev.calora.ffi.Session, adapters: List<ScaledAdapter>) : AutoCloseable {
    /** The adapters in use. */
    @Volatile
    public var adapters: List<ScaledAdapter> = adapters
        private set

    /** Whether a response is in progress. */
    public val isResponding: Boolean
        get() = ffi.isResponding()

    /** The conversation so far, as of the last response that ended by itself. */
    public val messages: List<Message>
        get() = ffi.messages().map { it.toApi() }

    /** Tokens of the conversation so far. */
    public val tokenCount: Int
        get() = ffi.tokenCount().toInt()

    /** Tokens that the session holds. */
    public val contextSize: Int
        get() = ffi.contextSize().toInt()

    /**
     * Answers a prompt: the user's next message, or, for a model without a chat template, text that is appended to the
     * conversation and continued.
     *
     * @throws EngineException.Busy while another response is in progress
     * @throws EngineException.ContextSizeExceeded if prompt and conversation do not fit
     * @throws EngineException.InvalidOption if an option cannot work
     * @throws EngineException.DeviceLost if the system took the GPU away over and over
     * @throws EngineException.DeviceUnavailable if it took the GPU away and does not give it back
     * @throws EngineException.Closed after [close] or [Engine.close], also in the middle of the answer
     */
    public suspend fun respond(prompt: String, options: GenerationOptions = GenerationOptions()): Response =
        streamResponse(prompt, options).toResponse()

    /**
     * Answers a prompt piece by piece. The flow is cold: nothing happens before it is collected, and each collection
     * asks anew. When its collector stops, for whatever reason, the device stops within one token.
     *
     * Throws from the flow what [respond] throws.
     */
    public fun streamResponse(
        prompt: String,
        options: GenerationOptions = GenerationOptions(),
    ): Flow<ResponseChunk> = pull { ffi.respond(prompt, options.toFfi()) }

    /**
     * Goes on with a text exactly as given: no chat template, no instructions, and the conversation starts anew.
     *
     * @throws EngineException what [respond] throws
     */
    public suspend fun complete(text: String, options: GenerationOptions = GenerationOptions()): Response =
        streamCompletion(text, options).toResponse()

    /**
     * [complete], piece by piece, in a cold flow like that of [streamResponse].
     *
     * Throws from the flow what [respond] throws.
     */
    public fun streamCompletion(
        text: String,
        options: GenerationOptions = GenerationOptions(),
    ): Flow<ResponseChunk> = pull { ffi.complete(text, options.toFfi()) }

    /**
     * How likely each choice is as the answer to a prompt, in the order given. The conversation stays as it is.
     *
     * @throws EngineException.Busy while a response is in progress
     * @throws EngineException.ContextSizeExceeded if prompt and conversation do not fit
     * @throws EngineException.InvalidOption if there is no choice
     * @throws EngineException.Closed after [close] or [Engine.close]
     */
    public suspend fun classify(prompt: String, choices: List<String>): List<Choice> = awaitNative {
        ffi.classify(prompt, choices).map { it.toApi() }
    }

    /**
     * Computes the beginning of the next prompt ahead of time, so that its answer starts sooner. The conversation stays
     * as it is.
     *
     * @throws EngineException.Busy while a response is in progress
     * @throws EngineException.ContextSizeExceeded if it does not fit
     * @throws EngineException.Closed after [close] or [Engine.close]
     */
    public suspend fun prewarm(promptPrefix: String): Unit = awaitNative { ffi.prewarm(promptPrefix) }

    /**
     * Goes on with another task, or with none. No base weight moves and the conversation stays.
     *
     * @param cache what of the conversation the next response computes anew; by default all of it
     * @return what is kept and what that costs
     * @throws EngineException.Busy while a response is in progress
     * @throws EngineException.OutOfMemory if there is no room for the adapter
     * @throws EngineException.Closed after [close], [Engine.close] or [TaskAdapter.close]
     */
    public suspend fun switchTo(adapter: TaskAdapter?, cache: CachePolicy = CachePolicy.RECOMPUTE): SwitchReport =
        switchTo(listOfNotNull(adapter?.let(::ScaledAdapter)), cache)

    /**
     * [switchTo] with several adapters at once, or with scaled ones; their effects add up.
     *
     * @throws EngineException.InvalidOption if a scale cannot work
     * @throws EngineException what the other [switchTo] throws
     */
    public suspend fun switchTo(
        adapters: List<ScaledAdapter>,
        cache: CachePolicy = CachePolicy.RECOMPUTE,
    ): SwitchReport {
        val report = awaitNative { ffi.switchTo(adapters.toFfi(), cache.toFfi()) }
        this.adapters = adapters.toList()
        return report.toApi()
    }

    /**
     * Forgets the conversation.
     *
     * @throws EngineException.Busy while a response is in progress
     * @throws EngineException.Closed after [close] or [Engine.close]
     */
    public suspend fun reset(): Unit = awaitNative { ffi.reset() }

    /**
     * Takes up a conversation that was held elsewhere, [messages] of an earlier session say. Only for models with a
     * chat template.
     *
     * @throws EngineException.Busy while a response is in progress
     * @throws EngineException.Closed after [close] or [Engine.close]
     */
    public suspend fun restore(messages: List<Message>): Unit = awaitNative { ffi.restore(messages.map { it.toFfi() }) }

    /**
     * Ends a response in progress and frees the cache; every later request throws [EngineException.Closed]. Twice is
     * fine.
     */
    override fun close(): Unit = ffi.shutDown()

    private fun pull(start: () -> dev.calora.ffi.ResponseStream): Flow<ResponseChunk> = flow {
        val stream = native(start)
        try {
            while (true) {
                val chunk =
                    awaitNative {
                        try {
                            stream.next()
                        } catch (_: dev.calora.ffi.EngineException.Cancelled) {
                            // Nobody but this flow cancels the stream, and it still waits: its session was closed.
                            throw EngineException.Closed("session")
                        }
                    }
                emit(chunk?.toApi() ?: break)
            }
        } finally {
            // Stops the device; nothing after the end.
            stream.cancel()
            stream.destroy()
        }
    }
}
