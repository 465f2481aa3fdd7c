package dev.calora

import java.lang.reflect.Modifier
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.first

class ErrorTest {
    private val options = GenerationOptions(maxTokens = 4)

    @Test
    fun `a prompt that does not fit says by how much, and the session goes on`() = engineTest { engine ->
        engine.session(contextSize = 32).use { session ->
            assertEquals(32, session.contextSize)
            val e = thrownBy<EngineException.ContextSizeExceeded> { session.respond("river ".repeat(100), options) }
            assertEquals(32, e.contextSize)
            assertTrue(e.tokenCount > 100, "${e.tokenCount}")
            thrownBy<EngineException.ContextSizeExceeded> { session.classify("river ".repeat(100), listOf("a")) }
            assertEquals(4, session.respond("river", options).usage.outputTokens)
        }
    }

    @Test
    fun `a context that fills up ends the answer`() = engineTest { engine ->
        engine.session(contextSize = 32).use { session ->
            val response = session.complete("The old house stood at the end of the lane, and")
            assertEquals(FinishReason.CONTEXT_FULL, response.finishReason)
            // The last token was chosen and is not in the cache.
            assertEquals(33, response.usage.promptTokens + response.usage.outputTokens)
            assertEquals(33, session.tokenCount)
        }
    }

    @Test
    fun `options that cannot work are named`() = engineTest { engine ->
        engine.session().use { session ->
            val outside = thrownBy<EngineException.InvalidOption> { session.respond("a", options.copy(topP = 1.5f)) }
            assertEquals("top_p" to "1.5", outside.option to outside.value)
            val negative = thrownBy<EngineException.InvalidOption> { session.respond("a", options.copy(topK = -1)) }
            assertEquals("topK" to "-1", negative.option to negative.value)
            thrownBy<EngineException.InvalidOption> { session.classify("a", emptyList()) }
            thrownBy<EngineException.InvalidOption> { engine.session(contextSize = 0) }
        }
    }

    @Test
    fun `a second request at the same time is Busy`() = engineTest { engine ->
        engine.session().use { session ->
            var refused = 0
            session.streamCompletion("The old house", GenerationOptions(maxTokens = 50)).collect {
                if (refused++ > 0) return@collect
                assertTrue(session.isResponding)
                thrownBy<EngineException.Busy> { session.respond("And now?") }
                thrownBy<EngineException.Busy> { session.switchTo(null) }
                thrownBy<EngineException.Busy> { session.classify("a", listOf("b")) }
                thrownBy<EngineException.Busy> { session.reset() }
            }
            assertTrue(refused > 1, "the first request went on")
            session.respond("And now?", options)
        }
    }

    @Test
    fun `closing twice is fine and everything after it is Closed`() = test {
        val engine = Engine.load(on())
        val session = engine.session()
        val other = engine.session()
        session.close()
        session.close()
        assertEquals("session", thrownBy<EngineException.Closed> { session.respond("a") }.what)
        assertEquals("session", thrownBy<EngineException.Closed> { session.streamResponse("a").first() }.what)
        thrownBy<EngineException.Closed> { session.prewarm("a") }
        thrownBy<EngineException.Closed> { session.restore(emptyList()) }
        assertEquals(4, other.respond("river", options).usage.outputTokens)
        engine.close()
        engine.close()
        val attempts =
            listOf<suspend () -> Any?>(
                { other.respond("a") },
                { other.switchTo(null) },
                { engine.session() },
                { engine.countTokens("a") },
                { engine.memory() },
                { engine.statistics() },
                { engine.trim(MemoryPressure.CRITICAL) },
                { engine.pause() },
                { engine.resume() },
                { engine.benchmark() },
                { engine.adapters.open(task("spam")) },
            )
        for (attempt in attempts) thrownBy<EngineException.Closed> { attempt() }
        // What is only looked at stays.
        assertEquals("llama", engine.modelInfo.architecture)
        assertEquals(0, session.messages.size)
        other.close()
    }

    @Test
    fun `closing in the middle of an answer ends it as Closed`() = test {
        val long = GenerationOptions(maxTokens = 300)
        val engine = Engine.load(on())
        val session = engine.session()
        val e =
            thrownBy<EngineException.Closed> {
                session.streamCompletion("The old house", long).collect { session.close() }
            }
        assertEquals("session", e.what)
        val other = engine.session()
        thrownBy<EngineException.Closed> {
            other.streamCompletion("The old house", long).collect { engine.close() }
        }
    }

    @Test
    fun `no generated type is part of the API`() {
        val api =
            listOf(
                Engine::class, Engine.Companion::class, EngineConfig::class, LoadProgress::class, AdapterLibrary::class,
                Adapters::class, Adapters.Companion::class, AdapterEntry::class, AdapterChange::class,
                Residency::class, TaskAdapter::class, ScaledAdapter::class, AdapterInfo::class, AdapterOpenOptions::class,
                Session::class, GenerationOptions::class, ResponseChunk::class, Response::class,
                Usage::class, Choice::class, Message::class, Availability::class, Availability.Available::class,
                Availability.Unavailable::class, DeviceInfo::class, ModelInfo::class, MemoryUse::class,
                TrimReport::class, MemoryPlan::class, EngineException.DoesNotFit::class, Statistics::class, BenchmarkOptions::class, SwapBenchmarkOptions::class, CachePolicy::class, SwitchReport::class,
                LogSink::class, EngineException::class,
            )
        val exposed =
            api.flatMap { type ->
                type.java.declaredMethods
                    // Internal members have a name with a dollar sign.
                    .filter { Modifier.isPublic(it.modifiers) && '$' !in it.name }
                    .filter { "dev.calora.ffi" in it.toGenericString() }
            }
        assertEquals(emptyList(), exposed)
    }
}
