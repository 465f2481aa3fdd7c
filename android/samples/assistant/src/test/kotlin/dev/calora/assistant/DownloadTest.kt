package dev.calora.assistant

import com.sun.net.httpserver.HttpExchange
import com.sun.net.httpserver.HttpServer
import java.io.File
import java.net.InetAddress
import java.net.InetSocketAddress
import java.net.URI
import java.security.MessageDigest
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.random.Random
import kotlin.test.AfterTest
import kotlin.test.BeforeTest
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.seconds
import kotlin.time.measureTime
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.io.TempDir

class DownloadTest {
    @TempDir lateinit var scratch: File
    private lateinit var server: HttpServer
    private var content = Random(1).nextBytes(1_000_000)
    private var etag: String? = "\"v1\""
    private var ranges = true

    /** How many bytes of an answer are sent before the connection breaks. */
    private var breakAfter: Int? = null

    /** What the server waits for before it breaks the connection. */
    private var stall: CountDownLatch? = null
    private val asked = mutableListOf<String?>()

    private val target
        get() = File(scratch, "models/base/model.safetensors")

    private val part
        get() = File(target.path + ".part")

    @BeforeTest
    fun serve() {
        server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
        server.createContext("/model") { it.use(::answer) }
        server.start()
    }

    @AfterTest fun stop() = server.stop(0)

    private fun answer(exchange: HttpExchange) {
        val range = exchange.requestHeaders.getFirst("Range")
        asked += range
        etag?.let { exchange.responseHeaders["ETag"] = it }
        val same = exchange.requestHeaders.getFirst("If-Range").let { it == null || it == etag }
        val start = if (ranges && same && range != null) range.filter(Char::isDigit).toInt() else 0
        if (start > 0 && start >= content.size) return exchange.sendResponseHeaders(416, -1)
        val rest = content.copyOfRange(start, content.size)
        exchange.sendResponseHeaders(if (start > 0) 206 else 200, rest.size.toLong())
        exchange.responseBody.write(rest, 0, minOf(rest.size, breakAfter ?: rest.size))
        exchange.responseBody.flush()
        stall?.await(20, TimeUnit.SECONDS)
    }

    private fun download(of: ByteArray = content, path: String = "/model"): Download {
        val url = URI("http://${server.address.hostString}:${server.address.port}$path").toURL()
        val hash = MessageDigest.getInstance("SHA-256").digest(of).joinToString("") { "%02X".format(it) }
        return Download(url, target, hash, silence = 1.seconds)
    }

    private fun assertArrived() {
        assertContentEquals(content, target.readBytes())
        assertEquals(listOf(target.name), target.parentFile.list()!!.toList(), "nothing is left beside it")
    }

    @Test
    fun `a file arrives whole, and once`() = runBlocking {
        val seen = download().run().toList()
        assertEquals(DownloadProgress(1_000_000, 1_000_000), seen.last())
        assertTrue(seen.zipWithNext().all { (a, b) -> a.receivedBytes < b.receivedBytes })
        assertArrived()
        assertEquals(DownloadProgress(1_000_000, 1_000_000), download().run().toList().single())
        assertEquals(listOf<String?>(null), asked, "what is there already is not asked for again")
    }

    @Test
    fun `a broken download goes on where it stopped`() = runBlocking {
        breakAfter = 300_000
        val broken = assertFailsWith<DownloadException.Interrupted> { download().run().toList() }
        assertFalse(target.exists())
        assertEquals(part.length(), broken.receivedBytes)
        assertTrue(part.length() in 1..300_000, "${part.length()}")
        breakAfter = null
        val kept = part.length()
        download().run().toList()
        assertEquals(listOf(null, "bytes=$kept-"), asked)
        assertArrived()
    }

    @Test
    fun `cancelled, or left waiting by a silent server, it goes on later`() = runBlocking {
        breakAfter = 300_000
        for (attempt in listOf<suspend () -> Any>(
            { download().run().first() },
            { assertFailsWith<DownloadException.Interrupted> { download().run().toList() } },
        )) {
            val silence = CountDownLatch(1)
            stall = silence
            val waited = measureTime { attempt() }
            silence.countDown()
            assertTrue(waited < 10.seconds, "$waited")
            assertFalse(target.exists())
            assertTrue(part.length() > 0)
        }
        val kept = part.length()
        stall = null
        breakAfter = null
        download().run().toList()
        assertEquals("bytes=$kept-", asked.last())
        assertArrived()
    }

    @Test
    fun `another version on the server starts anew`() = runBlocking {
        breakAfter = 300_000
        assertFailsWith<DownloadException.Interrupted> { download().run().toList() }
        breakAfter = null
        content = Random(2).nextBytes(900_000)
        etag = "\"v2\""
        download().run().toList()
        assertArrived()
    }

    @Test
    fun `servers without ranges or versions work too`() = runBlocking {
        for (step in listOf({ ranges = false }, { etag = null }, { etag = "W/\"weak\"" })) {
            step()
            target.delete()
            breakAfter = 300_000
            assertFailsWith<DownloadException.Interrupted> { download().run().toList() }
            breakAfter = null
            download().run().toList()
            assertArrived()
        }
    }

    @Test
    fun `a wrong file never appears`() = runBlocking {
        val wanted = Random(3).nextBytes(1_000_000)
        val e = assertFailsWith<DownloadException.WrongChecksum> { download(of = wanted).run().toList() }
        assertTrue(e.actual.length == 64 && e.actual != e.expected)
        assertEquals(emptyList(), target.parentFile.list()!!.toList())
    }

    @Test
    fun `a part that is complete is only checked`() = runBlocking {
        breakAfter = 300_000
        assertFailsWith<DownloadException.Interrupted> { download().run().toList() }
        part.writeBytes(content)
        download().run().toList()
        assertArrived()
    }

    @Test
    fun `a refusal says its status`() = runBlocking {
        val e = assertFailsWith<DownloadException.Refused> { download(path = "/nothing").run().toList() }
        assertEquals(404, e.status)
        assertFalse(target.exists())
    }
}
