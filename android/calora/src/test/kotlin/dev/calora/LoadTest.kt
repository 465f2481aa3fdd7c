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
    fun `a model that does not fit says what would, and can be made smaller`() = test {
        val config = on().copy(contextSize = 256)
        val whole = Engine.plan(config)
        assertTrue(whole.fits && whole.fittingContextSize == null && whole.leastBytes == null, "$whole")
        assertEquals(256 to DeviceKind.CPU, whole.contextSize to whole.kind)
        val parts = with(whole) { listOf(weightBytes, copyBytes, cacheBytes, adapterBytes, prefixBytes, scratchBytes) }
        assertEquals(whole.totalBytes, parts.sum())
        assertEquals(2 * whole.cacheBytes, Engine.plan(config.copy(plannedSessions = 2)).cacheBytes)

        val tight = config.copy(memoryBudgetBytes = whole.totalBytes - 1)
        val e = thrownBy<EngineException.DoesNotFit> { Engine.load(tight).close() }
        assertEquals(whole.totalBytes to whole.totalBytes - 1, e.plan.totalBytes to e.plan.availableBytes)
        assertEquals(Engine.plan(tight), e.plan)
        assertTrue("${whole.totalBytes}" in e.message!!, e.message)
        val availability = assertIs<Availability.Unavailable>(Engine.availability(tight))
        assertEquals(Availability.Reason.NOT_ENOUGH_MEMORY, availability.reason)

        Engine.load(tight.copy(contextSize = e.plan.fittingContextSize)).use { assertTrue(it.memoryPlan.fits) }
        Engine.load(tight.copy(memoryPolicy = MemoryPolicy.SHRINK)).use { engine ->
            assertTrue(engine.memoryPlan.totalBytes < whole.totalBytes)
            assertEquals(engine.memoryPlan.contextSize, engine.modelInfo.contextSize)
            assertEquals(engine.memoryPlan.adapterBytes, engine.residency().budgetBytes)
            engine.session().use { assertEquals(4, it.respond("river", GenerationOptions(maxTokens = 4)).usage.outputTokens) }
        }
    }

    @Test
    fun `availability tells the size`() = test {
        val available = assertIs<Availability.Available>(Engine.availability(on()))
        assertTrue(available.weightBytes > 10_000_000)
    }
}
