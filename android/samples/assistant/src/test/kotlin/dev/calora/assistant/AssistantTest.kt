package dev.calora.assistant

import dev.calora.DeviceChoice
import dev.calora.EngineConfig
import java.io.File
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.minutes
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout

class AssistantTest {
    private val models = File(checkNotNull(System.getProperty("calora.models")) { "set -Dcalora.models" })
    private val spam = TASKS.single { it.adapter == "spam" }
    private val intent = TASKS.single { it.adapter == "intent" }

    private fun assistantTest(router: Router? = null, body: suspend CoroutineScope.(Assistant) -> Unit) =
        runBlocking(Dispatchers.Default) {
            withTimeout(2.minutes) {
                val config = EngineConfig(File(models, "base"), DeviceChoice.CPU)
                Assistant.open(models, config, router).use { body(it) }
            }
        }

    /** Sends everything to one task. */
    private class Always(var route: Route) : Router {
        override suspend fun route(request: String) = route
    }

    @Test
    fun `a request is routed, the task swapped in, the answer streamed`() {
        val router = Always(Route.To(intent, 0.9))
        assistantTest(router) { assistant ->
            assertEquals(TASKS, assistant.tasks)
            val seen = CopyOnWriteArrayList<AssistantState>()
            val watching = launch(Dispatchers.Unconfined) { assistant.state.collect { seen += it } }
            assistant.ask("wake me with some quiet piano music")
            watching.cancelAndJoin()
            val first = assistant.state.value
            assertEquals("PlayMusic", first.answer.trim())
            assertEquals(intent, first.task)
            assertEquals(Route.To(intent, 0.9), first.route)
            assertNotNull(first.swap)
            assertFalse(first.busy)
            assertTrue(first.usage!!.decodeTokensPerSecond > 0 && first.memory!!.totalBytes > 10_000_000)
            val figures = Regex("""swapped in \d+ us · \d+ tokens/s · first after \d+ ms · \d+.\d MB""")
            assertTrue(figures.matches(first.figures), first.figures)
            assertTrue(seen.any { it.busy && it.answer.isNotEmpty() && it.answer != first.answer }, "it came in pieces")

            router.route = Route.To(spam, 0.8)
            assistant.ask("CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize")
            assertEquals("spam", assistant.state.value.answer.trim())
            assertNotNull(assistant.state.value.swap)
            assistant.ask("did you feed the cat before you left?")
            assertEquals("ham", assistant.state.value.answer.trim())
            assertNull(assistant.state.value.swap, "the task was attached already")
        }
    }

    @Test
    fun `the shipped router finds the task of the shipped examples`() = assistantTest { assistant ->
        val requests =
            mapOf(
                "intent" to
                    listOf(
                        "wake me with some quiet piano music",
                        "what will the weather be in Lisbon on Friday",
                        "get us a table for five somewhere with good noodles",
                    ),
                "spam" to
                    listOf(
                        "Running ten minutes late, order me a tea please",
                        "CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize",
                        "Txt GAME to 80555 for the hottest ringtones, only 150p per week",
                    ),
                "clean-question" to
                    listOf(
                        "When did the queen no wait the king leave the city?",
                        "What is the longest, uh, I mean the widest river in France?",
                        "Who wrote the song or rather who sang the song first?",
                    ),
                "sentiment" to
                    listOf(
                        "a warm , funny and deeply moving film",
                        "dull , predictable and far too long",
                        "there is nothing here to laugh at , and nothing to care about",
                    ),
            )
        for ((task, texts) in requests) {
            for (text in texts) {
                assistant.ask(text)
                val route = assistant.state.value.route
                assertIs<Route.To>(route, "$text: $route")
                assertEquals(task, route.task.adapter, text)
                assertEquals(route.task, assistant.state.value.task)
                assertTrue(assistant.state.value.answer.isNotBlank())
            }
        }
        // What is like none of the four.
        for (text in listOf("bonjour", "is it good?")) {
            assistant.ask(text)
            assertIs<Route.Unknown>(assistant.state.value.route, text)
        }
    }

    @Test
    fun `what the router does not know is asked back`() =
        assistantTest(Always(Route.Unknown(spam, 0.4))) { assistant ->
            val before = assistant.engine.statistics().tokens
            assistant.ask("hm")
            val state = assistant.state.value
            assertIs<Route.Unknown>(state.route)
            assertTrue(spam.title in state.problem!!, state.problem)
            assertEquals("", state.answer)
            assertEquals(before, assistant.engine.statistics().tokens)
            // The user's choice needs no router.
            assistant.ask("what will the weather be in Lisbon on Friday", intent)
            assertEquals("GetWeather", assistant.state.value.answer.trim())
            assertNull(assistant.state.value.route)
            assertNull(assistant.state.value.problem)
        }

    @Test
    fun `errors are shown, and cancelling keeps what was answered`() =
        assistantTest(Always(Route.To(intent, 1.0))) { assistant ->
            assistant.ask("music ".repeat(600))
            assertTrue("512" in assistant.state.value.problem!!, assistant.state.value.problem)
            assertFalse(assistant.state.value.busy)
            val job = launch { assistant.ask("wake me with some quiet piano music") }
            assistant.state.first { it.answer.isNotEmpty() || !it.busy && it.request.startsWith("wake") }
            job.cancelAndJoin()
            assertFalse(assistant.state.value.busy)
            assistant.ask("wake me with some quiet piano music")
            assertEquals("PlayMusic", assistant.state.value.answer.trim())
        }

    @Test
    fun `diagnostics have device, model and speed, and nothing that was typed`() =
        assistantTest(Always(Route.To(intent, 1.0))) { assistant ->
            assistant.ask("play marmalade by the zebras")
            val text = assistant.diagnostics()
            for (fact in listOf("calora ", "device: CPU", "model: llama", "adapter: intent, rank 8", "decode")) {
                assertTrue(fact in text, "$fact in $text")
            }
            assertFalse("marmalade" in text, text)
            assertFalse(assistant.state.value.answer.trim() in text, text)
        }
}
