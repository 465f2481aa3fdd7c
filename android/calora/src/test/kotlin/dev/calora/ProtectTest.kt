package dev.calora

import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertNotEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue
import org.junit.jupiter.api.io.TempDir

class ProtectTest {
    @TempDir lateinit var scratch: File

    private val golden = File(models.parentFile, "tests/golden/protect")
    private val plain = File(golden, "spam.safetensors")
    private val signer =
        File(golden, "signer.pub").readText().trim().substringAfter(' ').chunked(2).map { it.toInt(16).toByte() }
            .toByteArray()
    private val key = ByteArray(32) { 7 }

    private suspend fun sealed() = File(scratch, "spam.sealed").also { Adapters.encrypt(plain, it, key) }

    @Test
    fun `an encrypted and signed adapter answers as the plain one`() = engineTest { engine ->
        val before = engine.memory().decryptedBytes
        val opened = engine.adapters.open(sealed(), AdapterOpenOptions(key, listOf(signer), checkCanary = true))
        assertTrue(opened.info.encrypted && opened.info.hasCanary)
        assertEquals(64, opened.info.signer?.length)
        assertTrue(engine.memory().decryptedBytes > before + 50_000)
        val reference = engine.adapters.open(plain)
        assertNull(reference.info.signer)
        val expected = engine.session(reference).use { it.respond(SPAM).text }
        assertEquals(expected, engine.session(opened).use { it.respond(SPAM).text })
        assertNotEquals(expected, engine.session().use { it.respond(SPAM).text })
    }

    @Test
    fun `no key, another key and another signer are refused`() = engineTest { engine ->
        val sealed = sealed()
        val locked = thrownBy<EngineException.AdapterLocked> { engine.adapters.open(sealed) }
        assertEquals(sealed.path, locked.path)
        thrownBy<EngineException.AdapterLocked> { Adapters.inspect(sealed) }
        thrownBy<EngineException.AdapterLocked> {
            engine.adapters.open(sealed, AdapterOpenOptions(key = ByteArray(32) { 8 }))
        }
        for (signers in listOf(emptyList(), listOf(ByteArray(32) { 9 }))) {
            thrownBy<EngineException.AdapterUntrusted> { engine.adapters.open(sealed, AdapterOpenOptions(key, signers)) }
        }
        thrownBy<EngineException.AdapterUntrusted> {
            engine.adapters.open(task("spam"), AdapterOpenOptions(trustedSigners = listOf(signer)))
        }
        val short = thrownBy<EngineException.InvalidOption> {
            engine.adapters.open(sealed, AdapterOpenOptions(key = ByteArray(31) { 113 }))
        }
        assertFalse("113" in short.message.orEmpty())
        assertFalse("7" in AdapterOpenOptions(key).toString())
        thrownBy<EngineException.Unsupported> { Adapters.encrypt(task("spam"), sealed, key) }
    }

    @Test
    fun `an adapter that does something else is unproven`() = engineTest { engine ->
        val doubled = File(scratch, "doubled.safetensors")
        val text = String(plain.readBytes(), Charsets.ISO_8859_1)
        val changed = text.replace("lora\\\":2.0", "lora\\\":4.0")
        assertNotEquals(text, changed)
        doubled.writeBytes(changed.toByteArray(Charsets.ISO_8859_1))
        engine.adapters.open(doubled)
        val e = thrownBy<EngineException.AdapterUnproven> {
            engine.adapters.open(doubled, AdapterOpenOptions(checkCanary = true))
        }
        assertEquals("spam", e.adapter)
    }
}
