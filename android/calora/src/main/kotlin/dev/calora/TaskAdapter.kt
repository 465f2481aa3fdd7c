package dev.calora

/**
 * A memory-mapped adapter that fits one engine's model, shared by that engine's sessions. [Adapters.open] and
 * [AdapterLibrary.open] make it.
 */
public class TaskAdapter internal constructor(internal val ffi: dev.calora.ffi.TaskAdapter) : AutoCloseable {
    /** What the file says of itself. */
    public val info: AdapterInfo = ffi.info().toApi()

    /** Which of the model's linears it touches, which not, and whether the base could be checked; for people. */
    public val coverage: String = ffi.coverage()

    /**
     * Lets go of the file. Sessions that use the adapter keep it until they switch or close; using it anew throws
     * [EngineException.Closed]. Twice is fine.
     */
    override fun close(): Unit = ffi.shutDown()

    /** The task's name. */
    override fun toString(): String = "TaskAdapter(${info.name})"
}

/**
 * An adapter and how strongly it acts.
 *
 * @property adapter the adapter
 * @property scale 1 as trained, 0 as if it were not there
 */
public data class ScaledAdapter(val adapter: TaskAdapter, val scale: Float = 1f)

internal fun List<ScaledAdapter>.toFfi() = map { dev.calora.ffi.ScaledAdapter(it.adapter.ffi, it.scale) }
