package dev.calora

import android.content.ComponentCallbacks2
import android.content.res.Configuration
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.launch

/**
 * Trims an engine when the system wants memory back.
 *
 * ```
 * application.registerComponentCallbacks(EngineMemoryCallbacks(engine, scope))
 * ```
 *
 * Since Android 14 an app in the foreground is told nothing; there, [EngineConfig.adapterBudgetBytes] and
 * [EngineConfig.contextSize] keep memory in bounds.
 *
 * @param engine the engine
 * @param scope where trimming runs
 * @param onTrim told what was freed
 */
public class EngineMemoryCallbacks(
    private val engine: Engine,
    private val scope: CoroutineScope,
    private val onTrim: (TrimReport) -> Unit = {},
) : ComponentCallbacks2 {
    /** Frees what the level asks for. */
    override fun onTrimMemory(level: Int) {
        trim(if (level in CRITICAL_LEVELS) MemoryPressure.CRITICAL else MemoryPressure.MODERATE)
    }

    /** Frees all that is not in use. */
    @Deprecated("Deprecated by Android, which still calls it")
    override fun onLowMemory(): Unit = trim(MemoryPressure.CRITICAL)

    /** Nothing depends on it. */
    override fun onConfigurationChanged(newConfig: Configuration): Unit = Unit

    private fun trim(level: MemoryPressure) {
        scope.launch {
            try {
                onTrim(engine.trim(level))
            } catch (_: EngineException.Closed) {
                // Nothing is left to free.
            }
        }
    }

    private companion object {
        /** `TRIM_MEMORY_RUNNING_CRITICAL`, `_BACKGROUND`, `_MODERATE`, `_COMPLETE`; newer SDKs deprecate the names. */
        val CRITICAL_LEVELS = setOf(15, 40, 60, 80)
    }
}
