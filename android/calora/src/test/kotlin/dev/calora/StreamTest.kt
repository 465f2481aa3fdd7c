package dev.calora

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertTrue
import kotlin.time.Duration
import kotlinx.coroutines.flow.toList

class StreamTest {
    private val options = GenerationOptions(maxTokens = 24, seed = 7)

    @Test
    fun `deltas join to the whole answer`() = engineTest { engine ->
        val adapter = engine.adapters.open(task("clean-question"))
        val whole = engine.session(adapter).use { it.respond(SPOKEN, options) }
        val chunks = engine.session(adapter).use { it.streamResponse(SPOKEN, options).toList() }
        assertEquals(whole.text, chunks.joinToString("") { it.text })
        assertEquals("What is the widest river in France?", whole.text.trim())
        assertTrue(chunks.size > 3, "it came in ${chunks.size} pieces")
        assertTrue(chunks.dropLast(1).all { it.finishReason == null && it.usage == null })
        assertEquals(whole.finishReason, chunks.last().finishReason)
        assertEquals(FinishReason.END_OF_TURN, whole.finishReason)
        val usage = assertNotNull(chunks.last().usage)
        assertEquals(whole.usage.outputTokens, usage.outputTokens)
        assertTrue(usage.promptTokens > 10 && usage.cachedTokens == 0, "$usage")
        assertTrue(usage.timeToFirstToken > Duration.ZERO && usage.decodeTokensPerSecond > 0, "$usage")
    }

    @Test
    fun `a flow is cold and asks anew each time`() = engineTest { engine ->
        engine.session().use { session ->
            val before = engine.statistics().tokens
            val flow = session.streamCompletion("The old house", options)
            assertEquals(before, engine.statistics().tokens)
            assertEquals(false, session.isResponding)
            val first = flow.toResponse()
            val between = engine.statistics().tokens
            assertTrue(between > before)
            val second = flow.toResponse()
            assertTrue(engine.statistics().tokens > between)
            assertEquals(first.text, second.text)
        }
    }

    @Test
    fun `options reach the engine`() = engineTest { engine ->
        engine.session().use { session ->
            val prompt = "The old house stood at the end of the lane, and"
            val limited = session.complete(prompt, GenerationOptions(maxTokens = 3))
            assertEquals(3, limited.usage.outputTokens)
            assertEquals(FinishReason.MAX_TOKENS, limited.finishReason)
            val long = session.complete(prompt, options)
            val stop = long.text.drop(8).take(4)
            val stopped = session.complete(prompt, options.copy(stop = listOf(stop)))
            assertEquals(FinishReason.STOP_SEQUENCE, stopped.finishReason)
            assertEquals(long.text.substringBefore(stop), stopped.text)
            val warm = GenerationOptions(maxTokens = 24, temperature = 1.5f, seed = -1)
            assertEquals(session.complete(prompt, warm).text, session.complete(prompt, warm).text)
            val other = session.complete(prompt, warm.copy(seed = 3))
            assertTrue(other.text != session.complete(prompt, warm).text, "another seed, another text")
        }
    }

    @Test
    fun `a conversation goes on in the cache and can be carried over`() = engineTest { engine ->
        engine.session().use { session ->
            session.respond("Good evening.", options)
            assertEquals(listOf(Role.USER, Role.ASSISTANT), session.messages.map { it.role })
            assertEquals("Good evening.", session.messages.first().content)
            assertTrue(session.tokenCount > 0)
            val second = session.respond("And then?", options)
            assertTrue(second.usage.cachedTokens > 0, "${second.usage}")

            engine.session().use { other ->
                other.restore(session.messages.take(2))
                assertEquals(second.text, other.respond("And then?", options).text)
            }
            session.reset()
            assertEquals(emptyList(), session.messages)
            assertEquals(0, session.tokenCount)
        }
    }

    @Test
    fun `prewarming is found in the cache and changes no answer`() = engineTest { engine ->
        val plain = engine.session().use { it.respond(SPOKEN, options) }
        engine.session().use { session ->
            session.prewarm(SPOKEN.dropLast(12))
            val warm = session.respond(SPOKEN, options)
            assertTrue(warm.usage.cachedTokens > 0, "${warm.usage}")
            assertEquals(plain.text, warm.text)
        }
    }

    @Test
    fun `counts tokens`() = engineTest { engine ->
        val few = engine.countTokens("river")
        val many = engine.countTokens("river ".repeat(50))
        assertTrue(few in 1..4, "$few")
        assertTrue(many in 50..200, "$many")
    }
}
