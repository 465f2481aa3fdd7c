package dev.calora.assistant

import dev.calora.Choice
import kotlin.math.ln
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlinx.coroutines.runBlocking

class RouterTest {
    private fun router(vararg shares: Pair<String, Double>, threshold: Double = 0.75) =
        ClassifyingRouter(
            { _, labels -> labels.map { label -> shares.toMap().getValue(label).let { Choice(label, ln(it), it) } } },
            threshold = threshold,
        )

    private val spam = TASKS.single { it.adapter == "spam" }

    @Test
    fun `the likeliest label decides`() = runBlocking {
        val route = router("command" to 0.1, "message" to 0.8, "question" to 0.05, "review" to 0.05).route("anything")
        assertEquals(Route.To(spam, 0.8), route)
    }

    @Test
    fun `below the threshold it does not know, and says what it would guess`() = runBlocking {
        val shares = arrayOf("command" to 0.2, "message" to 0.5, "question" to 0.2, "review" to 0.1)
        assertEquals(Route.Unknown(spam, 0.5), router(*shares).route("anything"))
        assertEquals(Route.To(spam, 0.5), router(*shares, threshold = 0.5).route("anything"))
    }

    @Test
    fun `it asks for the labels of its tasks`() = runBlocking {
        var asked = emptyList<String>()
        val router =
            ClassifyingRouter({ request, labels ->
                assertEquals("a request", request)
                asked = labels
                labels.mapIndexed { i, label -> Choice(label, 0.0, if (i == 0) 1.0 else 0.0) }
            })
        assertEquals(Route.To(TASKS.first(), 1.0), router.route("a request"))
        assertEquals(listOf("command", "message", "question", "review"), asked)
    }
}
