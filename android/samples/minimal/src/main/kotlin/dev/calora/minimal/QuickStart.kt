package dev.calora.minimal

import dev.calora.Engine
import dev.calora.EngineConfig
import java.io.File

/** The README's first lines of Kotlin: one model, two tasks, swapped in a running session. */
suspend fun quickStart(models: File, show: (String) -> Unit) {
    val config = EngineConfig(File(models, "base"))
    Engine.load(config) { show("loading: ${(it.fraction * 100).toInt()} %\n") }.use { engine ->
        val intent = engine.adapters.open(File(models, "adapters/intent"))
        val spam = engine.adapters.open(File(models, "adapters/spam"))

        engine.session(intent).use { session ->
            session.streamResponse("wake me with some quiet piano music").collect { show(it.text) }

            session.switchTo(spam) // hot swap: no weight moves, the conversation stays
            session.reset() // the next message stands alone
            show("\n" + session.respond("You have WON a free holiday! Call now to claim").text)
        }
    }
}
