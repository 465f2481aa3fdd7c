package dev.calora

import java.io.File
import java.util.Collections
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.milliseconds
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import org.junit.jupiter.api.io.TempDir

class LoadTest {
    @TempDir lateinit var scratch: File

    @Test
    fun `progress rises and ends at 1 once`() = test {
        val seen = Collections.synchronizedList(mutableListOf<LoadProgress>())
        Engine.load(on()) { seen += it }.close()
        assertEquals(1.0, seen.last().fraction)
        assertEquals(1, seen.count { it.fraction == 1.0 })
        assertEquals(seen.sortedBy { it.fraction }, seen.toList())
        assertEquals(seen.last().totalBytes, seen.last().loadedBytes)
        assertTrue(seen.last().totalBytes > 10_000_000, "the model has 11.5 MB")
    }

    @Test
    fun `an exception of the callback stops loading and comes out`() = test {
        class Enough : RuntimeException()
        thrownBy<Enough> { Engine.load(on()) { throw Enough() }.close() }
    }

    @Test
    fun `loads that are cancelled or refused at any moment leave no engine behind`() = test {
        repeat(150) { n ->
            val job = launch { Engine.load(on()).close() }
            delay((n % 25).milliseconds)
            job.cancelAndJoin()
        }
        class Enough : RuntimeException()
        repeat(20) {
            // Too late to stop it: the engine is there.
            thrownBy<Enough> { Engine.load(on()) { if (it.fraction == 1.0) throw Enough() } }
        }
        awaitNoEngine()
    }

    @Test
    fun `says what model and device are`() = engineTest { engine ->
        assertEquals("llama", engine.modelInfo.architecture)
        assertEquals(6, engine.modelInfo.layers)
        assertEquals(512, engine.modelInfo.contextSize)
        assertEquals(base, engine.modelInfo.folder)
        assertTrue(engine.modelInfo.hasChatTemplate)
        assertEquals(DeviceKind.CPU, engine.deviceInfo.kind)
        assertTrue(engine.deviceInfo.name.isNotBlank())
        assertTrue(Regex("""\d+\.\d+\.\d+.*""").matches(Engine.version))
    }

    @Test
    fun `a missing folder is named`() = test {
        val nowhere = File(scratch, "nowhere")
        val e = thrownBy<EngineException.FileNotFound> { Engine.load(on(nowhere)).close() }
        assertTrue(e.path.startsWith(nowhere.path), e.path)
        val availability = assertIs<Availability.Unavailable>(Engine.availability(nowhere))
        assertEquals(Availability.Reason.MODEL_MISSING, availability.reason)
    }

    @Test
    fun `truncated weights are named`() = test {
        val model = copyWith(base, File(scratch, "cut"), "model.safetensors") { it.copyOf(it.size / 2) }
        val e = thrownBy<EngineException.InvalidFile> { Engine.load(on(model)).close() }
        assertEquals(File(model, "model.safetensors").path, e.path)
        assertTrue(e.reason.isNotBlank())
        val availability = assertIs<Availability.Unavailable>(Engine.availability(on(model)))
        assertEquals(Availability.Reason.MODEL_DAMAGED, availability.reason)
    }

    @Test
    fun `an architecture that is not computed is named`() = test {
        val model = copyWith(base, File(scratch, "other"), "config.json") {
            String(it).replace("\"llama\"", "\"mamba\"").replace("LlamaFor", "MambaFor").toByteArray()
        }
        val e = thrownBy<EngineException.Unsupported> { Engine.load(on(model)).close() }
        assertTrue("mamba" in e.feature.lowercase(), e.feature)
    }

    @Test
    fun `options that cannot work are named`() = test {
        val negative = thrownBy<EngineException.InvalidOption> { Engine.load(on().copy(threads = -2)).close() }
        assertEquals("threads" to "-2", negative.option to negative.value)
        val empty = thrownBy<EngineException.InvalidOption> { Engine.load(on().copy(contextSize = 0)).close() }
        assertEquals("0", empty.value)
    }

    @Test
    fun `availability tells the size`() = test {
        val available = assertIs<Availability.Available>(Engine.availability(on()))
        assertTrue(available.weightBytes > 10_000_000)
    }
}
