package dev.calora.assistant

import dev.calora.Engine
import dev.calora.EngineConfig
import dev.calora.EngineException
import dev.calora.GenerationOptions
import dev.calora.LoadProgress
import dev.calora.Session
import dev.calora.TaskAdapter
import java.io.File
import kotlin.time.measureTime
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock

/**
 * One engine, one session that swaps tasks, and a router that says which. Everything a screen needs is in [state].
 *
 * @property engine for memory callbacks, lifecycle and benchmark
 * @property tasks the tasks whose adapters are there
 */
class Assistant
private constructor(
    val engine: Engine,
    val tasks: List<Task>,
    private val adapters: Map<Task, TaskAdapter>,
    private val session: Session,
    private val router: Router?,
) : AutoCloseable {
    private val mutable = MutableStateFlow(AssistantState())

    /** What a screen shows. */
    val state: StateFlow<AssistantState> = mutable.asStateFlow()

    private val oneAtATime = Mutex()

    /**
     * Answers a request with a task, or with the one that the router finds. A cancelled caller keeps what was answered
     * so far.
     */
    suspend fun ask(request: String, chosen: Task? = null) {
        oneAtATime.withLock {
            mutable.value = AssistantState(request, task = chosen, busy = true)
            try {
                val task = chosen ?: find(request) ?: return
                mutable.update { it.copy(task = task) }
                attach(task)
                answer(request, task)
            } catch (e: EngineException) {
                mutable.update { it.copy(problem = e.message) }
            } finally {
                mutable.update { it.copy(busy = false) }
            }
        }
    }

    private suspend fun find(request: String): Task? {
        val route = router?.route(request)
        mutable.update { it.copy(route = route) }
        return when (route) {
            is Route.To -> route.task
            is Route.Unknown -> {
                val guess = "I don't know what to do with this. \"${route.guess.title}\", perhaps? Choose a task."
                mutable.update { it.copy(problem = guess) }
                null
            }
            null -> {
                mutable.update { it.copy(problem = "There is no router adapter. Choose a task.") }
                null
            }
        }
    }

    /** The hot swap. */
    private suspend fun attach(task: Task) {
        val adapter = adapters.getValue(task)
        if (session.adapters.singleOrNull()?.adapter != adapter) {
            val swap = measureTime { session.switchTo(adapter) }
            mutable.update { it.copy(swap = swap) }
        }
        // These tasks answer one message each.
        session.reset()
    }

    private suspend fun answer(request: String, task: Task) {
        session.streamResponse(request, GenerationOptions(maxTokens = task.maxTokens)).collect { chunk ->
            mutable.update { it.copy(answer = it.answer + chunk.text, usage = chunk.usage) }
        }
        val memory = engine.memory()
        mutable.update { it.copy(memory = memory) }
    }

    /** Facts for a bug report; nothing that the user has typed. */
    suspend fun diagnostics(): String = diagnosticsOf(engine, adapters.values.map { it.info }, state.value.usage)

    /** Closes the engine and all that belongs to it. */
    override fun close() = engine.close()

    companion object {
        /**
         * Loads `base` and the adapters in `adapters`.
         *
         * @param models the folder of both
         * @param router finds tasks instead of the adapter `router`
         */
        suspend fun open(
            models: File,
            config: EngineConfig = EngineConfig(File(models, "base")),
            router: Router? = null,
            onProgress: (LoadProgress) -> Unit = {},
        ): Assistant {
            val engine = Engine.load(config, onProgress)
            try {
                val folder = File(models, "adapters")
                val adapters =
                    TASKS.filter { File(folder, it.adapter).exists() }
                        .associateWith { engine.adapters.open(File(folder, it.adapter)) }
                // Small enough to stay: every swap is a hot one.
                for (adapter in adapters.values) engine.adapters.preload(adapter)
                val routes = router ?: routerIn(folder, engine, adapters.keys)
                return Assistant(engine, adapters.keys.toList(), adapters, engine.session(), routes)
            } catch (e: Throwable) {
                engine.close()
                throw e
            }
        }

        /** The routes lie beside the router's adapter; those of tasks that are not there are left out. */
        private suspend fun routerIn(folder: File, engine: Engine, tasks: Set<Task>): Router? {
            val file = File(folder, "router")
            if (!file.exists() || tasks.size < 2) return null
            val names = tasks.map { it.adapter }
            val routes = dev.calora.Route.read(File(file, "routes.json")).filter { it.name in names }
            return LibraryRouter(engine.router(routes, engine.adapters.open(file)))
        }
    }
}
