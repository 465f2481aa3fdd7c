package dev.calora

import java.nio.file.Files
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertTrue
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import org.json.JSONObject

class SurvivalTest {
    private val story = "The old house stood at the end of the lane, and"
    private val options = GenerationOptions(maxTokens = 40, temperature = 0f)

    @Test
    fun `a device lost in the background comes back, with the same text and typed events`() = engineTest { engine ->
        engine.session(engine.adapters.open(task("intent"))).use { session ->
            val whole = session.complete(story, options).text
            val events = CopyOnWriteArrayList<EngineEvent>()
            // Undispatched: it listens before anything else happens.
            val listening =
                launch(start = CoroutineStart.UNDISPATCHED) { engine.events.take(4).onEach(events::add).collect {} }
            val text = StringBuilder()
            var chunks = 0
            session.streamCompletion(story, options).collect {
                text.append(it.text)
                if (chunks++ == 0) {
                    engine.pause()
                    engine.simulateDeviceLoss()
                    engine.resume()
                }
            }
            assertEquals(whole, text.toString())
            engine.simulateDeviceLoss()
            assertEquals(0, engine.memory().weightBytes)
            assertEquals(whole, session.complete(story, options).text)
            listening.join()
            for (i in listOf(0, 2)) {
                assertEquals(EngineEvent.DeviceLost("simulated"), events[i])
                val rebuilt = assertIs<EngineEvent.DeviceRebuilt>(events[i + 1])
                assertEquals(engine.deviceInfo.name, rebuilt.device)
                assertTrue(rebuilt.seconds > 0)
            }
        }
    }

    @Test
    fun `events end with their collector or their engine`() = test {
        val engine = Engine.load(on())
        val left = launch(start = CoroutineStart.UNDISPATCHED) { engine.events.collect {} }
        left.cancelAndJoin()
        val heard = CompletableDeferred<List<EngineEvent>>()
        launch(start = CoroutineStart.UNDISPATCHED) { heard.complete(engine.events.toList()) }
        engine.simulateDeviceLoss()
        engine.close()
        assertEquals(listOf<EngineEvent>(EngineEvent.DeviceLost("simulated")), heard.await())
        assertEquals(emptyList(), engine.events.toList())
        assertEquals(DeviceKind.CPU, engine.deviceInfo.kind)
        thrownBy<EngineException.Closed> { engine.simulateDeviceLoss() }
    }

    @Test
    fun `the CPU may stand in for a GPU`() = engineTest(
        EngineConfig(base, device = DeviceChoice.GPU, fallbackToCpu = true)
    ) { engine ->
        engine.session(engine.adapters.open(task("spam"))).use { session ->
            assertEquals("spam", session.respond(SPAM, GenerationOptions(maxTokens = 4)).text)
        }
    }

    @Test
    fun `a folder remembers what the driver of the GPU can do`() {
        val folder = Files.createTempDirectory("device").toFile()
        val config = EngineConfig(base, device = DeviceChoice.GPU, fallbackToCpu = true, deviceFolder = folder)
        var kernels = 0
        for (launch in 1..2) {
            engineTest(config) { engine ->
                val report = engine.deviceReport()
                if (engine.deviceInfo.kind == DeviceKind.CPU) {
                    assertEquals(null, report)
                    return@engineTest
                }
                val facts = JSONObject(report!!)
                assertEquals(kernels, facts.getInt("kept"))
                assertEquals(0, facts.getInt("failed"), report)
                kernels = facts.getJSONArray("kernels").length()
                assertTrue(kernels > 0 && folder.list()!!.isNotEmpty(), report)
                engine.session(engine.adapters.open(task("spam"))).use { session ->
                    assertEquals("spam", session.respond(SPAM, GenerationOptions(maxTokens = 4)).text)
                }
                // The adapter has kernels of its own.
                kernels = JSONObject(engine.deviceReport()!!).getJSONArray("kernels").length()
            }
        }
        folder.deleteRecursively()
        engineTest { engine -> assertEquals(null, engine.deviceReport()) }
    }
}
