package dev.calora

import java.nio.file.Files
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
    fun `a policy says what of the conversation is kept`() = engineTest { engine ->
        val intent = engine.adapters.open(task("intent"))
        val spam = engine.adapters.open(task("spam"))
        val long = List(4) { COMMAND }.joinToString(" ")
        engine.session(intent).use { session ->
            session.respond(long, options)
            val away = session.switchTo(spam, CachePolicy.RESTORE)
            assertTrue(away.isExact && away.putAsideBytes > 0 && away.cachedTokens == 0, "$away")
            assertEquals(away.putAsideBytes, engine.memory().prefixBytes)
            val back = session.switchTo(intent, CachePolicy.RESTORE)
            assertTrue(back.isExact && back.cachedTokens > 16, "$back")
            val restored = session.respond(COMMAND, options)
            assertTrue(restored.usage.cachedTokens >= back.cachedTokens && restored.usage.inexactTokens == 0)

            val kept = session.switchTo(spam, CachePolicy.KEEP)
            assertTrue(!kept.isExact && kept.cachedTokens > back.cachedTokens, "$kept")
            assertEquals(kept.inexactTokens, session.respond(COMMAND, options).usage.inexactTokens)
            assertEquals(0, session.switchTo(spam).cachedTokens, "an exact policy trusts none of it")
        }
        engine.trim(MemoryPressure.MODERATE)
        assertEquals(0, engine.memory().prefixBytes)
    }

    @Test
    fun `instructions are computed once, also for the next engine`() {
        val folder = Files.createTempDirectory("prefixes").toFile()
        val told = "Answer in one short sentence about rivers, and say nothing else, please."
        suspend fun Engine.ask() = session(instructions = told).use { it.respond(COMMAND, options) }
        lateinit var first: Response
        engineTest(on().copy(prefixFolder = folder)) { engine ->
            first = engine.ask()
            assertEquals(0, first.usage.cachedTokens)
            assertTrue(engine.ask().usage.cachedTokens > 16)
        }
        engineTest(on().copy(prefixFolder = folder)) { engine ->
            val again = engine.ask()
            assertTrue(again.usage.cachedTokens > 16, "${again.usage}")
            assertEquals(first.text, again.text)
        }
        assertTrue(folder.deleteRecursively())
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
    fun `a request fades an adapter in without a copy of it`() = engineTest { engine ->
        val intent = engine.adapters.open(task("intent"))
        val plain = engine.session().use { it.answer(COMMAND) }
        engine.session(intent).use { session ->
            val bytes = engine.memory().adapterBytes
            suspend fun at(scale: Float): String {
                session.reset()
                return session.respond(COMMAND, options.copy(adapterScales = listOf(scale))).text
            }
            assertEquals(plain, at(0f))
            for (tenth in 1..9) at(tenth / 10f)
            assertEquals("GetWeather", at(1f).trim())
            assertEquals(bytes, engine.memory().adapterBytes)
            assertEquals(1, engine.residency().adapters.size)
            assertEquals(1f, session.adapters.single().scale)
            val two = thrownBy<EngineException.InvalidOption> {
                session.respond(COMMAND, options.copy(adapterScales = listOf(1f, 1f)))
            }
            assertEquals("adapter_scales", two.option)
        }
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
