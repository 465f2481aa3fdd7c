package dev.calora

import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.job
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/**
 * Base weights on a device. Heavy: one for each model, shared by all sessions.
 *
 * Everything is computed on one thread of the engine's own; no call blocks the caller's thread, and sessions that
 * answer at the same time take turns token by token. All members are safe to use from any thread.
 */
public class Engine private constructor(private val ffi: dev.calora.ffi.Engine) : AutoCloseable {
    /** What the model is. */
    public val modelInfo: ModelInfo = ffi.modelInfo().toApi()

    /** What computes now; for a closed engine, what it was loaded on. */
    public val deviceInfo: DeviceInfo
        get() = ffi.deviceInfo().toApi()

    /**
     * What happens to the device while it is collected: it was lost, made again, or given up for the CPU. Nobody has to
     * listen. The flow is hot in that it tells nobody of what was before, and ends when the engine is closed; a collector
     * that is 64 events behind misses the next ones.
     */
    public val events: Flow<EngineEvent> = flow {
        val stream = ffi.events()
        try {
            while (true) emit(awaitNative { stream.next() }?.toApi() ?: break)
        } finally {
            stream.cancel()
            stream.destroy()
        }
    }

    /** What loading planned, with the context and the budgets that it settled for. */
    public val memoryPlan: MemoryPlan = ffi.memoryPlan().toApi()

    /** Task adapters for this model, file by file. */
    public val adapters: Adapters = Adapters(ffi)

    /**
     * Opens a folder of adapters; headers are read only, unless [options] ask for more.
     *
     * @param options what every adapter of the folder is opened with
     * @throws EngineException.FileNotFound where there is no such folder
     * @throws EngineException.Closed after [close]
     */
    public suspend fun adapterLibrary(
        directory: File,
        options: AdapterOpenOptions = AdapterOpenOptions(),
    ): AdapterLibrary =
        AdapterLibrary(awaitNative({ it.destroy() }) { ffi.adapterLibrary(directory.path, options.toFfi()) })

    /**
     * Which adapters are on the device, and how full their budget is.
     *
     * @throws EngineException.Closed after [close]
     */
    public suspend fun residency(): Residency = awaitNative { ffi.residency().toApi() }

    /**
     * What the self-test of the GPU's kernels found, as one JSON object: which pass, which are not used and why, which run
     * here. To be sent home from a phone that answers strangely. Null without [EngineConfig.deviceFolder], on the CPU, and
     * between the loss of a device and the next use.
     *
     * @throws EngineException.Closed after [close]
     */
    public suspend fun deviceReport(): String? = awaitNative { ffi.deviceReport() }

    /**
     * Begins a conversation.
     *
     * @param adapter the task; null for the base model as it is
     * @param instructions what the model is told first; null for what the adapter brings
     * @param contextSize tokens that the session holds; null for the engine's number
     * @param priority how much its work matters beside that of other sessions
     * @throws EngineException.InvalidOption if the context size cannot work
     * @throws EngineException.OutOfMemory if there is no room for cache or adapter
     * @throws EngineException.Closed after [close] or [TaskAdapter.close]
     */
    public suspend fun session(
        adapter: TaskAdapter? = null,
        instructions: String? = null,
        contextSize: Int? = null,
        priority: SessionPriority = SessionPriority.FOREGROUND,
    ): Session = session(listOfNotNull(adapter?.let(::ScaledAdapter)), instructions, contextSize, priority)

    /**
     * Begins a conversation with several adapters at once, or with scaled ones; their effects add up.
     *
     * @param adapters the adapters
     * @param instructions what the model is told first; null for what the first adapter brings
     * @param contextSize tokens that the session holds; null for the engine's number
     * @param priority how much its work matters beside that of other sessions
     * @throws EngineException.InvalidOption if the context size or a scale cannot work
     * @throws EngineException.OutOfMemory if there is no room for cache or adapters
     * @throws EngineException.Closed after [close] or [TaskAdapter.close]
     */
    public suspend fun session(
        adapters: List<ScaledAdapter>,
        instructions: String? = null,
        contextSize: Int? = null,
        priority: SessionPriority = SessionPriority.FOREGROUND,
    ): Session {
        val size = contextSize?.unsigned("contextSize")
        val config = dev.calora.ffi.SessionConfig(adapters.toFfi(), instructions, size, priority.toFfi())
        return Session(awaitNative({ it.destroy() }) { ffi.session(config) }, adapters.toList())
    }

    /**
     * Makes something that picks the task for a request. Examples are measured, a pass each; other sessions go on
     * meanwhile.
     *
     * @param routes the tasks, at least two
     * @param adapter what was trained to give the routes' answers; null where these are descriptions, which the model
     *   judges as it is
     * @throws EngineException.InvalidOption if routes cannot be told apart, or an option cannot work
     * @throws EngineException.OutOfMemory if there is no room for cache or adapter
     * @throws EngineException.Closed after [close] or [TaskAdapter.close]
     */
    public suspend fun router(
        routes: List<Route>,
        adapter: TaskAdapter? = null,
        options: RouterOptions = RouterOptions(),
    ): Router {
        val config =
            dev.calora.ffi.RouterConfig(
                routes.map { it.toFfi() },
                listOfNotNull(adapter?.let(::ScaledAdapter)).toFfi(),
                options.prompt,
                options.confidence,
                options.familiarity,
            )
        return Router(awaitNative({ it.destroy() }) { ffi.router(config) })
    }

    /**
     * How many tokens a text has.
     *
     * @throws EngineException.Closed after [close]
     */
    public suspend fun countTokens(text: String): Int =
        withContext(Dispatchers.Default) { native { ffi.countTokens(text).toInt() } }

    /**
     * Bytes on the device now; none between a loss and the next use.
     *
     * @throws EngineException.Closed after [close]
     */
    public suspend fun memory(): MemoryUse = awaitNative { ffi.memory().toApi() }

    /**
     * What was computed since the engine was loaded.
     *
     * @throws EngineException.Closed after [close]
     */
    public fun statistics(): Statistics = native { ffi.statistics().toApi() }

    /**
     * Frees memory that is not in use. Answers stay what they were.
     *
     * @throws EngineException.Closed after [close]
     */
    public suspend fun trim(level: MemoryPressure): TrimReport = awaitNative { ffi.trim(level.toFfi()).toApi() }

    /**
     * Stops using the device; returns when it is idle. Requests wait, and go on after [resume]. For apps that leave the
     * foreground.
     *
     * @throws EngineException.Closed after [close]
     */
    public suspend fun pause(): Unit = awaitNative { ffi.pause() }

    /**
     * Goes on after [pause].
     *
     * @throws EngineException.Closed after [close]
     */
    public fun resume(): Unit = native { ffi.resume() }

    /**
     * Gives the device up as if the system had taken it, also while paused: for tests of an app. The next use makes it
     * again; waits for the pass in progress.
     *
     * @throws EngineException.Closed after [close]
     */
    public suspend fun simulateDeviceLoss(): Unit =
        withContext(Dispatchers.Default) { native { ffi.simulateDeviceLoss() } }

    /**
     * Measures speed, memory and what swapping costs. The result is one JSON object, the same as `calora bench --json`
     * prints. The engine does nothing else meanwhile, and a cancelled caller does not stop it.
     *
     * @throws EngineException.InvalidOption if an option cannot work
     * @throws EngineException.ContextSizeExceeded if prompt and answer do not fit
     * @throws EngineException.Closed after [close]
     */
    public suspend fun benchmark(options: BenchmarkOptions = BenchmarkOptions()): String = awaitNative {
        ffi.benchmark(options.toFfi())
    }

    /**
     * Measures what many tasks over one model cost: mapping them, swaps, and the first token after one for each
     * [CachePolicy]. One JSON object, the same as `calora bench --swap --json` prints; otherwise as [benchmark].
     *
     * @throws EngineException.FileNotFound where there is no such folder
     * @throws EngineException.InvalidOption if the folder holds too few adapters, or another option cannot work
     * @throws EngineException.Closed after [close]
     */
    public suspend fun benchmarkSwaps(options: SwapBenchmarkOptions): String = awaitNative {
        ffi.benchmarkSwaps(options.toFfi())
    }

    /**
     * Ends all sessions and frees the device's memory once the pass in progress is over. Returns at once; every later
     * call throws [EngineException.Closed]. Twice is fine.
     */
    override fun close(): Unit = ffi.shutDown()

    public companion object {
        /** calora's version. */
        public val version: String
            get() = dev.calora.ffi.version()

        /**
         * Loads a model. Cancelling stops it; so does an exception of [onProgress], which comes out of this function.
         *
         * @param onProgress told of loading, in the caller's context, a few times a second at most and at the end
         * @throws EngineException.FileNotFound if a file of the model is missing
         * @throws EngineException.FileUnreadable if a file cannot be read
         * @throws EngineException.InvalidFile if a file is damaged
         * @throws EngineException.Unsupported if the model needs something that would not be computed
         * @throws EngineException.DeviceUnavailable if the wanted device cannot be used
         * @throws EngineException.DoesNotFit if the plan does not fit the memory that there is
         * @throws EngineException.OutOfMemory if there is no room although the plan said so
         * @throws EngineException.InvalidOption if an option cannot work
         */
        public suspend fun load(config: EngineConfig, onProgress: (LoadProgress) -> Unit = {}): Engine {
            var loaded: dev.calora.ffi.Engine? = null
            try {
                coroutineScope {
                    val states = Channel<LoadProgress>(Channel.CONFLATED)
                    launch { for (state in states) onProgress(state) }
                    val report = Report(states, coroutineContext.job)
                    loaded = awaitNative({ it.destroy() }) { dev.calora.ffi.Engine.load(config.toFfi(), report) }
                    states.close()
                }
                return Engine(checkNotNull(loaded))
            } catch (e: Throwable) {
                // Cancelled, or refused by onProgress, after the last byte.
                loaded?.shutDown()
                throw e
            }
        }

        /**
         * What a model would take with this configuration, whether or not that fits: headers are read and devices asked,
         * nothing is loaded.
         *
         * @throws EngineException as [load] where the model could not be loaded at all
         */
        public suspend fun plan(config: EngineConfig): MemoryPlan =
            withContext(Dispatchers.IO) { native { dev.calora.ffi.memoryPlan(config.toFfi()).toApi() } }

        /** Whether a model can be loaded this way: headers are read and devices asked, nothing is loaded. */
        public suspend fun availability(config: EngineConfig): Availability =
            withContext(Dispatchers.IO) { dev.calora.ffi.availability(config.toFfi()).toApi() }

        /** Whether the model in this folder can be loaded with the default configuration. */
        public suspend fun availability(model: File): Availability = availability(EngineConfig(model))

        /** How much is logged, to logcat and to the sink; warnings and errors unless told. */
        public fun setLogLevel(level: LogLevel): Unit = dev.calora.ffi.setLogLevel(level.toFfi())

        /** Where log lines go besides logcat; null to stop. */
        public fun setLogSink(sink: LogSink?): Unit = dev.calora.ffi.setLogSink(sink?.let(::LogForward))
    }

    /** Takes progress from the engine's thread to the caller's, and stops a load whose caller is gone. */
    private class Report(private val states: Channel<LoadProgress>, private val caller: Job) :
        dev.calora.ffi.LoadProgress {
        override fun onProgress(state: dev.calora.ffi.LoadState) {
            if (!caller.isActive) throw dev.calora.ffi.EngineException.Cancelled()
            states.trySend(state.toApi())
        }
    }
}
