package dev.calora.minimal

import android.util.Log
import dev.calora.BenchmarkOptions
import dev.calora.Engine
import dev.calora.EngineConfig
import dev.calora.EngineException
import java.io.File

/** What `android/bench.sh` starts and waits for: one JSON object in the log. Nothing of it is a prompt or an answer. */
suspend fun benchmark(folder: File) {
    try {
        Engine.load(EngineConfig(File(folder, "model"))).use { engine ->
            Log.i(TAG, engine.benchmark(BenchmarkOptions(adapters = listOf(File(folder, "adapter")))))
        }
    } catch (e: EngineException) {
        Log.e(TAG, e.message, e)
    }
}

private const val TAG = "calora-bench"
