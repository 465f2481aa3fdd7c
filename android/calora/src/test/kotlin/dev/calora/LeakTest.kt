package dev.calora

import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.minutes
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.first
import org.json.JSONObject
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.io.TempDir

class LeakTest {
    @TempDir lateinit var scratch: File
    private val status = File("/proc/self/status")

    private fun status(field: String) =
        status.readLines().first { it.startsWith("$field:") }.filter(Char::isDigit).toLong()

    /** A random model of 96 tokens, with a word for each. */
    private fun tinyModel(): File {
        val folder = File(scratch, "tiny")
        File(models, "../tests/golden/plain").copyRecursively(folder)
        val model = JSONObject().put("type", "WordLevel").put("unk_token", "w0")
        model.put("vocab", JSONObject((0..95).associate { "w$it" to it }))
        val tokenizer = JSONObject().put("version", "1.0").put("model", model)
        tokenizer.put("pre_tokenizer", JSONObject().put("type", "Whitespace"))
        File(folder, "tokenizer.json").writeText(tokenizer.toString())
        return folder
    }

    private suspend fun cycle(model: File) {
        Engine.load(on(model)).use { engine ->
            engine.session().use { session ->
                // The first piece cancels the rest.
                val piece = session.streamCompletion("w1 w2 w3", GenerationOptions(maxTokens = 40)).first()
                assertTrue(piece.text.isNotEmpty())
            }
        }
    }

    private suspend fun settled(): Long {
        repeat(3) {
            System.gc()
            delay(100)
        }
        return status("RssAnon")
    }

    @Test
    fun `a thousand engines loaded, streamed, cancelled and closed leave nothing behind`() = test(limit = 10.minutes) {
        assumeTrue(status.exists(), "needs /proc")
        val model = tinyModel()
        // Heap, code cache and allocator grow to their working size first.
        repeat(300) { cycle(model) }
        val before = settled()
        repeat(700) { cycle(model) }
        val grown = settled() - before
        println("1,000 cycles: $before kB after 300, $grown kB more after 1,000")
        // 700 leaked KV caches alone would be 92 MB.
        assertTrue(grown < 16_000, "$grown kB more than after 300 cycles")
        awaitNoEngine()
    }

    @Test
    fun `the cache of a closed session is free at once`() = engineTest { engine ->
        val before = engine.memory().cacheBytes
        val session = engine.session()
        session.complete("The", GenerationOptions(maxTokens = 2))
        assertTrue(engine.memory().cacheBytes > before)
        session.close()
        assertEquals(before, engine.memory().cacheBytes)
    }
}
