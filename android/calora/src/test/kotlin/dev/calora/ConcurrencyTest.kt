package dev.calora

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.milliseconds
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext

class ConcurrencyTest {
    @Test
    fun `eight coroutines with different adapters answer as they do alone`() = engineTest { engine ->
        val names = listOf("intent", "spam", "clean-question", "sentiment", "novelist", "playwright")
        val opened = names.map { engine.adapters.open(task(it)) }
        val tasks =
            opened.map { listOf(ScaledAdapter(it)) } + listOf(emptyList(), listOf(ScaledAdapter(opened[0], 0.5f)))
        val options = GenerationOptions(maxTokens = 16, seed = 5)
        suspend fun answer(adapters: List<ScaledAdapter>) =
            engine.session(adapters).use { it.respond(COMMAND, options).text }
        val alone = tasks.map { answer(it) }
        assertTrue(alone.distinct().size >= 6, "the adapters differ: $alone")
        val together = tasks.map { async { answer(it) } }.awaitAll()
        assertEquals(alone, together)
    }

    @Test
    fun `a background session answers as it does alone, after the foreground`() = engineTest { engine ->
        val options = GenerationOptions(maxTokens = 24)
        val texts = listOf("did you feed the cat before you left?", "You have WON a free holiday. Call 09061 555 0100")
        val spam = engine.adapters.open(task("spam"))
        val story = engine.session().use { it.complete("The old house", options).text }
        engine.session(spam, priority = SessionPriority.BACKGROUND).use { quiet ->
            suspend fun triage() = texts.map { text -> quiet.classify(text, listOf("ham", "spam")).map { it.probability } }
            val alone = triage()
            assertTrue(alone[0][0] > 0.5 && alone[1][1] > 0.5, "$alone")
            val urgent = engine.session()
            engine.pause()
            val asked = async { triage() }
            // The foreground's answer fits what is computed ahead of its reader: it waits for nobody.
            val answer = async { urgent.complete("The old house", GenerationOptions(maxTokens = 4)) }
            delay(100.milliseconds)
            engine.resume()
            assertEquals(alone, asked.await())
            assertFalse(urgent.isResponding)
            answer.await()
            urgent.close()
            // Both at once, many passes each.
            val again = async { triage() }
            assertEquals(story, engine.session().use { it.complete("The old house", options).text })
            assertEquals(alone, again.await())
        }
    }

    @Test
    fun `pausing holds everything and resuming goes on`() = engineTest { engine ->
        val options = GenerationOptions(maxTokens = 40)
        val undisturbed = engine.session().use { it.complete("The old house", options).text }
        engine.session().use { session ->
            engine.pause()
            val before = engine.statistics().tokens
            val answer = async { session.complete("The old house", options) }
            delay(300.milliseconds)
            assertFalse(answer.isCompleted)
            assertEquals(before, engine.statistics().tokens)
            engine.resume()
            assertEquals(undisturbed, answer.await().text)
        }
        // In the middle of an answer.
        engine.session().use { session ->
            var chunks = 0
            val text = StringBuilder()
            session.streamCompletion("The old house", options).collect {
                text.append(it.text)
                if (++chunks == 3) {
                    engine.pause()
                    val held = engine.statistics().tokens
                    delay(100.milliseconds)
                    assertEquals(held, engine.statistics().tokens)
                    engine.resume()
                }
            }
            assertEquals(undisturbed, text.toString())
        }
    }

    @Test
    fun `a collector may block, whatever its dispatcher`() = engineTest { engine ->
        engine.session(contextSize = 64).use { session ->
            withContext(Dispatchers.Unconfined) {
                session.streamCompletion("The old house", GenerationOptions(maxTokens = 8)).collect {
                    // On the engine's thread this would wait for itself.
                    runBlocking { engine.memory() }
                }
                thrownBy<EngineException.ContextSizeExceeded> { session.respond("river ".repeat(100)) }
                assertEquals(4, session.complete("The", GenerationOptions(maxTokens = 4)).usage.outputTokens)
            }
        }
    }

    @Test
    fun `a paused engine can be closed`() = test {
        val engine = Engine.load(on())
        val session = engine.session()
        engine.pause()
        val answer = async { runCatching { session.respond("a") } }
        delay(100.milliseconds)
        engine.close()
        assertTrue(answer.await().exceptionOrNull() is EngineException.Closed, "${answer.await()}")
    }
}
