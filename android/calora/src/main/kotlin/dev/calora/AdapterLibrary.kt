package dev.calora

import java.io.File
import kotlin.time.Duration
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow

/**
 * A folder of adapters for one engine: task files (`.safetensors`) and PEFT folders. [Engine.adapterLibrary] opens it.
 *
 * Only headers are read, so hundreds of files cost next to nothing. A file that is replaced is a new generation: [open]
 * gives the new one, and a session that has the old one keeps it. Adapters are read with checks: whoever truncates a file
 * causes [EngineException.FileChanged] and nothing worse. Calls throw [EngineException.Closed] after [Engine.close].
 */
public class AdapterLibrary internal constructor(private val ffi: dev.calora.ffi.AdapterLibrary) {
    /** All adapters by name, and what of them is in memory. */
    public suspend fun entries(): List<AdapterEntry> = awaitNative { ffi.entries().map { it.toApi() } }

    /**
     * Looks at the folder again and tells what changed since the last time. A file that is as it was is not read.
     *
     * @throws EngineException.FileNotFound where the folder is gone
     */
    public suspend fun refresh(): List<AdapterChange> = awaitNative { ffi.refresh().map { it.toApi() } }

    /**
     * What changes, found by [refresh] every [interval] while somebody collects. Asking the system about a few hundred
     * files costs some milliseconds and works on every phone. Each change is told once: collect in one place.
     */
    public fun watch(interval: Duration): Flow<AdapterChange> = flow {
        while (true) {
            refresh().forEach { emit(it) }
            delay(interval)
        }
    }

    /**
     * The adapter of this name as the folder last had it.
     *
     * @throws EngineException.FileNotFound where there was none at the last [refresh]
     * @throws EngineException.InvalidFile if it is damaged or no adapter
     * @throws EngineException.Unsupported if it needs something that would not be computed
     * @throws EngineException.AdapterMismatch if it was made for another base
     * @throws EngineException.AdapterTouchesNothing if it would change nothing
     * @throws EngineException.AdapterUnproven if its canary is checked, and it does nothing or something else
     */
    public suspend fun open(name: String): TaskAdapter = TaskAdapter(awaitNative({ it.destroy() }) { ffi.open(name) })

    /**
     * Makes adapters resident and keeps them so, whatever the budget, until [evict], [Engine.trim] or their replacement.
     *
     * @throws EngineException.FileChanged if a file was truncated or written to after it was found
     * @throws EngineException.OutOfMemory if there is no room
     */
    public suspend fun preload(names: List<String>): Unit = awaitNative { ffi.preload(names) }

    /** Lets go of a resident adapter; it stays where a session uses it. */
    public suspend fun evict(name: String): Unit = awaitNative { ffi.evict(name) }

    /** Asks the system to read an adapter's bytes soon; a hint that makes nothing resident. */
    public suspend fun prefetch(name: String): Unit = awaitNative { ffi.prefetch(name) }

    /**
     * Puts a copy of a task file in an adapter's place, if that is still at the version that the caller knows. Whoever is
     * killed meanwhile leaves the old file or the new one.
     *
     * @param expected the version that the caller knows; null to add one that is not there
     * @return the new version
     * @throws EngineException.VersionConflict if somebody else was faster
     * @throws EngineException.AdapterMismatch if the file was made for another base; others as [open]
     */
    public suspend fun replace(name: String, expected: String?, source: File): String = awaitNative {
        ffi.replace(name, expected, source.path)
    }

    /**
     * Removes an adapter from the folder, if it is still at the version that the caller knows.
     *
     * @throws EngineException.VersionConflict if somebody else was faster
     */
    public suspend fun remove(name: String, expected: String): Unit = awaitNative { ffi.remove(name, expected) }
}

/**
 * One adapter of an [AdapterLibrary], as it was when the library was asked.
 *
 * @property name the file's name without `.safetensors`, or the PEFT folder's
 * @property file the task file or PEFT folder
 * @property version which state of its files this is; only equality means anything
 * @property info what it says of itself; null where it could not be read
 * @property mappedBytes bytes of its branches in the mapped file; they cost memory only while they are read
 * @property residentBytes bytes of it that are on the device
 * @property inUse whether a session uses it
 * @property preloaded whether it was preloaded, and stays whatever the budget
 * @property problem why it cannot be used, for people; [AdapterLibrary.open] throws the error itself
 */
public data class AdapterEntry(
    val name: String,
    val file: File,
    val version: String,
    val info: AdapterInfo?,
    val mappedBytes: Long,
    val residentBytes: Long,
    val inUse: Boolean,
    val preloaded: Boolean,
    val problem: String?,
)

/** What a look at a folder of adapters found. */
public sealed interface AdapterChange {
    /** The adapter's name. */
    public val name: String

    /**
     * A new adapter.
     *
     * @property version its version
     */
    public data class Added(override val name: String, val version: String) : AdapterChange

    /**
     * Another content under a known name. Sessions keep what they have.
     *
     * @property version the new version
     */
    public data class Replaced(override val name: String, val version: String) : AdapterChange

    /** It is gone from the folder. Sessions keep what they have. */
    public data class Removed(override val name: String) : AdapterChange

    /**
     * It is there and cannot be read; told once for each state of its files.
     *
     * @property problem why, for people; [AdapterLibrary.open] throws the error itself
     */
    public data class Refused(override val name: String, val problem: String) : AdapterChange
}

private fun dev.calora.ffi.AdapterEntry.toApi() =
    AdapterEntry(
        name = name,
        file = File(path),
        version = version,
        info = info?.toApi(),
        mappedBytes = mappedBytes.toLong(),
        residentBytes = residentBytes.toLong(),
        inUse = inUse,
        preloaded = preloaded,
        problem = problem,
    )

private fun dev.calora.ffi.AdapterChange.toApi(): AdapterChange =
    when (this) {
        is dev.calora.ffi.AdapterChange.Added -> AdapterChange.Added(name, version)
        is dev.calora.ffi.AdapterChange.Replaced -> AdapterChange.Replaced(name, version)
        is dev.calora.ffi.AdapterChange.Removed -> AdapterChange.Removed(name)
        is dev.calora.ffi.AdapterChange.Refused -> AdapterChange.Refused(name, problem)
    }
