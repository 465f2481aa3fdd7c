package dev.calora

import java.io.File
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.json.JSONObject

class DiagnosticsTest {
    private val options = GenerationOptions(maxTokens = 8)

    @Test
    fun `classify picks the right answer and leaves the conversation alone`() = engineTest { engine ->
        val spam = engine.adapters.open(task("spam"))
        engine.session(spam).use { session ->
            val choices = session.classify(SPAM, listOf("ham", "spam"))
            assertEquals(listOf("ham", "spam"), choices.map { it.text })
            assertTrue(choices[1].probability > 0.9, "$choices")
            assertTrue(abs(choices.sumOf { it.probability } - 1) < 1e-9, "$choices")
            assertTrue(choices.all { it.logLikelihood < 0 }, "$choices")
            val wanted = session.classify("Running ten minutes late, order me a tea please", listOf("ham", "spam"))
            assertTrue(wanted[0].probability > 0.9, "$wanted")
            assertEquals(0, session.messages.size)
            assertEquals(0, session.tokenCount)
        }
    }

    @Test
    fun `trimming frees what is idle, and answers stay the same`() = engineTest { engine ->
        val spam = engine.adapters.open(task("spam"))
        engine.session(spam).use { session ->
            val first = session.respond(SPAM, options)
            session.switchTo(null)
            engine.adapters.preload(spam)
            val before = engine.memory()
            assertTrue(before.adapterBytes > 0 && before.cacheBytes > 0, "$before")
            val moderate = engine.trim(MemoryPressure.MODERATE)
            assertTrue(moderate.evictedAdapters >= 1 && moderate.droppedCaches == 0, "$moderate")
            assertTrue(moderate.freedBytes > 0 && moderate.mappedBytes == 0L, "$moderate")
            assertEquals(moderate.freedBytes, moderate.adapterBytes + moderate.prefixBytes)
            assertEquals(before.cacheBytes, engine.memory().cacheBytes)
            val critical = engine.trim(MemoryPressure.CRITICAL)
            assertEquals(1 to before.cacheBytes, critical.droppedCaches to critical.cacheBytes)
            assertTrue(critical.scratchBytes > 0 && critical.mappedBytes > 10_000_000, "$critical")
            assertTrue(engine.memory().cacheBytes < before.cacheBytes)
            assertTrue(engine.memory().totalBytes < before.totalBytes)
            session.switchTo(spam)
            session.reset()
            assertEquals(first.text, session.respond(SPAM, options).text)
        }
    }

    @Test
    fun `the benchmark is one JSON object`() = engineTest { engine ->
        val asked = BenchmarkOptions(listOf(task("spam")), promptTokens = 16, outputTokens = 4, runs = 2)
        val report = JSONObject(engine.benchmark(asked))
        assertEquals(16, report.getInt("prompt_tokens"))
        assertEquals(2, report.getInt("runs"))
        assertTrue(report.getDouble("decode_tokens_per_second") > 0)
        assertTrue(report.getLong("weight_bytes") > 10_000_000)
        assertTrue(report.getJSONObject("swap_us").getJSONObject("hot").getDouble("p50") > 0)
        val none = JSONObject(engine.benchmark(asked.copy(adapters = emptyList())))
        assertTrue(none.isNull("swap_us"))
        thrownBy<EngineException.InvalidOption> { engine.benchmark(asked.copy(promptTokens = 0)) }
    }

    @Test
    fun `the benchmark of swaps is one JSON object`() = engineTest { engine ->
        val asked = SwapBenchmarkOptions(File(models, "adapters"), resident = 3, promptTokens = 16, runs = 1)
        val report = JSONObject(engine.benchmarkSwaps(asked))
        assertEquals(3, report.getInt("resident"))
        assertTrue(report.getInt("tasks") > 3 && report.getLong("resident_bytes") > 0)
        assertEquals(3, report.getJSONArray("policies").length())
        thrownBy<EngineException.InvalidOption> { engine.benchmarkSwaps(asked.copy(resident = 100)) }
    }

    @Test
    fun `log lines arrive, without prompt or answer`() = test {
        val lines = CopyOnWriteArrayList<String>()
        Engine.setLogLevel(LogLevel.DEBUG)
        Engine.setLogSink { level, target, line -> lines += "$level $target $line" }
        try {
            Engine.load(on()).use { engine ->
                val spam = engine.adapters.open(task("spam"))
                engine.session(spam).use { session ->
                    val prompt = "Quixotic zebras juggle 81723 marmalade jars"
                    val answer = session.complete(prompt, GenerationOptions(maxTokens = 24)).text.trim()
                    session.classify(prompt, listOf("ham", "spam"))
                    engine.trim(MemoryPressure.CRITICAL)
                    assertTrue(lines.any { "trim" in it }, "$lines")
                    assertTrue(answer.length > 8, answer)
                    for (line in lines) {
                        assertTrue("marmalade" !in line && "81723" !in line && answer !in line, line)
                    }
                }
            }
            lines.clear()
            // A sink that throws harms nobody, and one that was removed hears nothing.
            Engine.setLogSink { _, _, _ -> throw IllegalStateException("the app's own defect") }
            Engine.load(on()).use { it.trim(MemoryPressure.MODERATE) }
            Engine.setLogSink(null)
            Engine.load(on()).use { it.trim(MemoryPressure.MODERATE) }
            assertEquals(emptyList(), lines.toList())
        } finally {
            Engine.setLogSink(null)
            Engine.setLogLevel(LogLevel.WARNING)
        }
    }
}
