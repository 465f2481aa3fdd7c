package dev.calora

import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue

class RouterTest {
    private suspend fun routes() = Route.read(File(task("router"), "routes.json"))

    private suspend fun shipped(engine: Engine, options: RouterOptions = RouterOptions()) =
        engine.router(routes(), engine.adapters.open(task("router")), options)

    @Test
    fun `a request finds its task and what is none does not`() = engineTest { engine ->
        val router = shipped(engine)
        for ((request, name) in mapOf(COMMAND to "intent", SPAM to "spam", SPOKEN to "clean-question")) {
            val routing = router.route(request)
            assertEquals(name, routing.route)
            assertEquals(name, routing.ranking.first().name)
            assertNull(routing.doubt)
            assertEquals(1.0, routing.ranking.sumOf { it.probability }, 1e-9)
            assertTrue(checkNotNull(routing.familiarity) >= checkNotNull(router.leastFamiliarity))
        }
        val nothing = router.route("hm")
        assertEquals(null to Doubt.UNFAMILIAR, nothing.route to nothing.doubt)
        assertEquals(Doubt.EMPTY, router.route(" ").doubt)
        router.close()
        router.close()
        thrownBy<EngineException.Closed> { router.route(COMMAND) }
    }

    @Test
    fun `thresholds are the app's`() = engineTest { engine ->
        val sure = shipped(engine, RouterOptions(confidence = 1.0)).use { it.route(COMMAND) }
        assertEquals(null to Doubt.UNSURE, sure.route to sure.doubt)
        assertTrue(sure.confidence in 0.6..<1.0)
        val bold = shipped(engine, RouterOptions(confidence = 0.0, familiarity = -1.0)).use { it.route("hm") }
        assertEquals(bold.ranking.first().name, bold.route)
    }

    @Test
    fun `descriptions need no training`() = engineTest { engine ->
        val routes = listOf(Route("film", "a review of a film"), Route("note", "a text message to a friend"))
        engine.router(routes).use { router ->
            assertNull(router.leastFamiliarity)
            val routing = router.route("a warm , funny and deeply moving film")
            assertEquals(setOf("film", "note"), routing.ranking.map { it.name }.toSet())
            assertNull(routing.familiarity)
        }
    }

    @Test
    fun `what cannot route is refused`() = engineTest { engine ->
        thrownBy<EngineException.InvalidOption> { engine.router(routes().take(1)) }
        thrownBy<EngineException.InvalidOption> { engine.router(routes(), null, RouterOptions(confidence = 2.0)) }
        thrownBy<EngineException.InvalidFile> { Route.read(File(base, "config.json")) }
        thrownBy<EngineException.FileNotFound> { Route.read(File(base, "nowhere.json")) }
        val router = shipped(engine)
        thrownBy<EngineException.ContextSizeExceeded> { router.route("river ".repeat(1000)) }
        engine.close()
        thrownBy<EngineException.Closed> { router.route(COMMAND) }
    }
}
