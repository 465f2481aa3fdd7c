package dev.calora

import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertNotEquals
import kotlin.test.assertNotNull
import kotlin.test.assertTrue
import org.junit.jupiter.api.io.TempDir

class AdapterTest {
    @TempDir lateinit var scratch: File

    @Test
    fun `a folder is scanned by header, damaged files told apart`() = engineTest { engine ->
        val folder = File(scratch, "adapters").apply { mkdir() }
        task("spam").copyRecursively(File(folder, "spam"))
        task("intent").copyRecursively(File(folder, "intent"))
        File(folder, "half.safetensors").writeBytes(byteArrayOf(1, 2, 3))
        File(folder, "notes.txt").writeText("not an adapter")
        val entries = engine.adapterLibrary(folder).entries()
        assertEquals(listOf("half", "intent", "spam"), entries.map { it.name })
        val (half, _, found) = entries
        val spam = assertNotNull(found.info)
        assertEquals(File(folder, "spam"), spam.file)
        assertEquals(8, spam.rank)
        assertTrue(spam.hasLora && !spam.hasRecovery)
        assertTrue(spam.bytes in 400_000..480_000, "${spam.bytes}")
        assertEquals(42, spam.modules)
        assertEquals(spam, Adapters.inspect(spam.file))
        assertEquals(0, found.residentBytes)
        assertTrue(half.info == null && half.problem != null)
        thrownBy<EngineException.InvalidFile> { engine.adapterLibrary(folder).open("half") }
        thrownBy<EngineException.FileNotFound> { engine.adapterLibrary(File(scratch, "nowhere")) }
    }

    @Test
    fun `an adapter of another base is refused, with both ids`() = engineTest { engine ->
        // Its recovery branches repair the model at 2 bits, and nothing else.
        val repaired = File(models, "adapted/clean-question-int2.safetensors")
        assertTrue(Adapters.inspect(repaired).hasRecovery)
        val e = thrownBy<EngineException.AdapterMismatch> { engine.adapters.open(repaired) }
        assertTrue(e.expectedBase.isNotBlank() && e.actualBase.isNotBlank())
        assertNotEquals(e.expectedBase, e.actualBase)
        assertEquals(Adapters.inspect(repaired).baseId, e.expectedBase)
    }

    @Test
    fun `an adapter that touches nothing is refused`() = engineTest { engine ->
        val stray = copyWith(task("spam"), File(scratch, "stray"), "adapter_model.safetensors") {
            renameTensors(it, "model.layers.", "model.strata.")
        }
        val e = thrownBy<EngineException.AdapterTouchesNothing> { engine.adapters.open(stray) }
        assertTrue(e.adapter.isNotBlank() && e.reason.isNotBlank())
    }

    @Test
    fun `damaged, missing and unsupported adapters are told apart`() = engineTest { engine ->
        val cut = copyWith(task("spam"), File(scratch, "cut"), "adapter_model.safetensors") { it.copyOf(1000) }
        val damaged = thrownBy<EngineException.InvalidFile> { engine.adapters.open(cut) }
        assertEquals(File(cut, "adapter_model.safetensors").path, damaged.path)
        thrownBy<EngineException.FileNotFound> { engine.adapters.open(File(scratch, "nowhere.safetensors")) }
        val dora = copyWith(task("spam"), File(scratch, "dora"), "adapter_config.json") {
            String(it).replace("\"use_dora\": false", "\"use_dora\": true").toByteArray()
        }
        val unsupported = thrownBy<EngineException.Unsupported> { engine.adapters.open(dora) }
        assertTrue("dora" in unsupported.feature.lowercase(), unsupported.feature)
    }

    @Test
    fun `a closed adapter stays where it is in use and nowhere else`() = engineTest { engine ->
        val spam = engine.adapters.open(task("spam"))
        assertEquals("spam", spam.info.name)
        assertTrue(spam.coverage.isNotBlank())
        engine.session(spam).use { session ->
            spam.close()
            spam.close()
            assertEquals("spam", session.respond(SPAM).text.trim())
            val e = thrownBy<EngineException.Closed> { session.switchTo(spam) }
            assertEquals("adapter", e.what)
            thrownBy<EngineException.Closed> { engine.session(spam) }
            thrownBy<EngineException.Closed> { engine.adapters.preload(spam) }
            assertFalse(session.isResponding)
        }
    }
}
