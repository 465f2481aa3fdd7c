package dev.calora

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNotEquals
import kotlin.test.assertTrue

class SwapTest {
    private val options = GenerationOptions(maxTokens = 24)

    private suspend fun Session.answer(prompt: String): String {
        reset()
        return respond(prompt, options).text
    }

    @Test
    fun `a swap changes the answer, and swapping back restores it`() = engineTest { engine ->
        val intent = engine.adapters.open(task("intent"))
        val spam = engine.adapters.open(task("spam"))
        engine.session(intent).use { session ->
            val asIntent = session.answer(COMMAND)
            assertEquals("GetWeather", asIntent.trim())
            session.switchTo(spam)
            assertEquals(listOf(spam), session.adapters.map { it.adapter })
            val asSpam = session.answer(COMMAND)
            assertNotEquals(asIntent, asSpam)
            assertEquals("spam", session.answer(SPAM).trim())
            session.switchTo(intent)
            assertEquals(asIntent, session.answer(COMMAND))
            assertEquals(asSpam, engine.session(spam).use { it.answer(COMMAND) })

            session.switchTo(null)
            assertEquals(emptyList(), session.adapters)
            val plain = session.answer(COMMAND)
            assertNotEquals(asIntent, plain)
            assertEquals(plain, engine.session().use { it.answer(COMMAND) })
        }
    }

    @Test
    fun `a swap keeps the conversation and says what it cost`() = engineTest { engine ->
        val intent = engine.adapters.open(task("intent"))
        engine.session().use { session ->
            session.respond(COMMAND, options)
            val kept = session.messages
            session.switchTo(intent)
            assertEquals(kept, session.messages)
            val after = session.respond(COMMAND, options).usage
            assertEquals(0, after.cachedTokens)
            val again = session.respond(COMMAND, options).usage
            assertTrue(again.cachedTokens >= after.promptTokens, "$again after $after")
        }
    }

    @Test
    fun `a scale of 0 is the base model, and scales between differ`() = engineTest { engine ->
        val intent = engine.adapters.open(task("intent"))
        val plain = engine.session().use { it.answer(COMMAND) }
        engine.session(listOf(ScaledAdapter(intent, 0f))).use { session ->
            assertEquals(plain, session.answer(COMMAND))
            session.switchTo(listOf(ScaledAdapter(intent, 1f)))
            assertEquals("GetWeather", session.answer(COMMAND).trim())
        }
        val score = { scale: Float ->
            listOf(ScaledAdapter(intent, scale))
        }
        val likelihoods =
            listOf(0f, 0.5f, 1f).map { scale ->
                engine.session(score(scale)).use { it.classify(COMMAND, listOf("GetWeather")).single().logLikelihood }
            }
        assertEquals(likelihoods.sorted(), likelihoods, "the more of the adapter, the likelier its answer")
        assertEquals(3, likelihoods.distinct().size)
    }

    @Test
    fun `several adapters act together`() = engineTest { engine ->
        val intent = engine.adapters.open(task("intent"))
        val spam = engine.adapters.open(task("spam"))
        val both = listOf(ScaledAdapter(intent), ScaledAdapter(spam, 0.5f))
        val choices = listOf("GetWeather", "ham")
        val together = engine.session(both).use { it.classify(COMMAND, choices) }
        val alone = engine.session(intent).use { it.classify(COMMAND, choices) }
        assertNotEquals(alone, together)
    }

    @Test
    fun `a preloaded adapter is resident until it is evicted`() = engineTest { engine ->
        val spam = engine.adapters.open(task("spam"))
        val before = engine.memory().adapterBytes
        engine.adapters.preload(spam)
        assertTrue(engine.memory().adapterBytes > before)
        engine.adapters.evict(spam)
        assertEquals(before, engine.memory().adapterBytes)
    }
}
