package dev.calora

import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertNotEquals
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.milliseconds
import kotlinx.coroutines.flow.first
import org.junit.jupiter.api.io.TempDir

class LibraryTest {
    @TempDir lateinit var scratch: File

    /** A PEFT folder of the library, whose tensors are replaced by renaming. */
    private fun put(adapter: String) {
        val folder = File(scratch, "task").apply { mkdirs() }
        for (file in listOf("adapter_config.json", "adapter_model.safetensors")) {
            val partial = File(scratch, "$file.partial")
            task(adapter).resolve(file).copyTo(partial, overwrite = true)
            assertTrue(partial.renameTo(File(folder, file)))
        }
    }

    @Test
    fun `a replaced file is a new generation and a running session keeps the old one`() = engineTest { engine ->
        put("spam")
        val library = engine.adapterLibrary(scratch)
        engine.session(library.open("task")).use { running ->
            assertEquals("spam", running.respond(SPAM).text.trim())
            val before = library.entries().single()
            assertTrue(before.inUse && before.residentBytes > 0)
            put("novelist")
            val change = assertIs<AdapterChange.Replaced>(library.watch(1.milliseconds).first())
            assertEquals("task", change.name)
            assertNotEquals(before.version, change.version)
            assertEquals(0, library.entries().single().residentBytes, "the new generation")
            assertEquals(1, engine.residency().adapters.size, "the old one")
            running.reset()
            assertEquals("spam", running.respond(SPAM).text.trim())
            library.preload(listOf("task"))
            assertTrue(library.entries().single().preloaded)
            library.evict("task")
        }
    }

    @Test
    fun `replacing is compare and swap`() = engineTest { engine ->
        put("spam")
        val library = engine.adapterLibrary(scratch)
        val version = library.entries().single().version
        val e = thrownBy<EngineException.VersionConflict> { library.remove("task", "another") }
        assertEquals("task", e.adapter)
        assertEquals("another", e.expected)
        assertEquals(version, e.actual)
        library.remove("task", version)
        assertEquals(emptyList(), library.entries())
        thrownBy<EngineException.FileNotFound> { library.open("task") }
    }

    @Test
    fun `a file truncated in place is an error and nothing worse`() = engineTest { engine ->
        put("spam")
        val library = engine.adapterLibrary(scratch)
        val opened = library.open("task")
        val tensors = File(scratch, "task/adapter_model.safetensors")
        java.io.RandomAccessFile(tensors, "rw").use { it.setLength(100) }
        val e = thrownBy<EngineException.FileChanged> { engine.session(opened) }
        assertEquals(tensors.path, e.path)
    }
}
