package dev.calora

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.milliseconds
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch

class CancelTest {
    private val prompt = "The old house stood at the end of the lane, and"
    private val long = GenerationOptions(maxTokens = 300)

    /** The engine runs at most this many chunks ahead of whoever collects. */
    private val ahead = 4

    /** Waits for the pass in progress, then for anything that should not come. */
    private suspend fun settledTokens(engine: Engine): Long {
        engine.pause()
        engine.resume()
        val tokens = engine.statistics().tokens
        delay(300.milliseconds)
        assertEquals(tokens, engine.statistics().tokens, "it went on after the cancellation")
        return tokens
    }

    @Test
    fun `a collector that stops stops the device`() = engineTest { engine ->
        engine.session().use { session ->
            val whole = session.complete(prompt, long).usage
            assertTrue(whole.outputTokens > 100, "left alone it writes on: $whole")
            session.reset()
            engine.session().use { fresh ->
                val before = engine.statistics().tokens
                val chunks = fresh.streamCompletion(prompt, long).take(3).toList()
                assertEquals(3, chunks.size)
                val computed = settledTokens(engine) - before
                // Some tokens give no text of their own, hence the last four.
                val most = whole.promptTokens + 3 + ahead + 1 + 4
                assertTrue(computed in whole.promptTokens..most, "$computed tokens, at most $most")
                assertFalse(fresh.isResponding)
            }
        }
    }

    @Test
    fun `a cancelled coroutine stops the device and is cancelled, not failed`() = engineTest { engine ->
        engine.session().use { session ->
            var outcome: Throwable? = null
            val underway = CompletableDeferred<Unit>()
            val job = launch {
                try {
                    var seen = 0
                    session.streamCompletion(prompt, long).collect { if (++seen == 3) underway.complete(Unit) }
                } catch (e: Throwable) {
                    outcome = e
                    throw e
                }
            }
            underway.await()
            val before = engine.statistics().tokens
            job.cancelAndJoin()
            assertTrue(outcome is CancellationException, "$outcome")
            assertTrue(settledTokens(engine) - before < 100)
            assertFalse(session.isResponding)
        }
    }

    @Test
    fun `after a cancellation the session is as before`() = engineTest { engine ->
        val options = GenerationOptions(maxTokens = 16)
        suspend fun Session.twice(between: suspend Session.() -> Unit): String {
            respond("Good evening.", options)
            between()
            return respond("And then?", options).text
        }
        val undisturbed = engine.session().use { it.twice {} }
        val disturbed = engine.session().use { session ->
            session.twice {
                val (messages, tokens) = messages to tokenCount
                streamResponse("Tell me all about the sea", long).take(2).toList()
                assertEquals(messages, this.messages)
                assertEquals(tokens, tokenCount)
            }
        }
        assertEquals(undisturbed, disturbed)
    }

    @Test
    fun `an exception of the collector comes out and stops the device`() = engineTest { engine ->
        class Enough : RuntimeException()
        engine.session().use { session ->
            thrownBy<Enough> { session.streamCompletion(prompt, long).collect { throw Enough() } }
            val before = engine.statistics().tokens
            assertTrue(settledTokens(engine) - before < 20)
            assertEquals(4, session.complete(prompt, GenerationOptions(maxTokens = 4)).usage.outputTokens)
        }
    }
}
