package dev.calora

import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/**
 * A task that requests may be for.
 *
 * @property name what the app calls it: an adapter's name, say
 * @property answer what the model answers to such a request: the label that an adapter was trained to give, or a
 *   description of the task
 * @property examples requests of this kind. They tell a router what is like nothing it knows; a pass each when it is made
 */
public data class Route(val name: String, val answer: String, val examples: List<String> = emptyList()) {
    public companion object {
        /**
         * Reads routes from a JSON file: a list of `{"name", "answer", "examples"}`.
         *
         * @throws EngineException.FileNotFound if it is not there
         * @throws EngineException.InvalidFile if it is something else
         */
        public suspend fun read(file: File): List<Route> =
            withContext(Dispatchers.IO) { native { dev.calora.ffi.readRoutes(file.path).map { it.toApi() } } }
    }
}

/**
 * When a [Router] admits that it does not know, and how it asks.
 *
 * @property confidence the least probability of the likeliest route, from 0 to 1
 * @property familiarity the least nearness to an example, from -1 to 1; null for what the examples themselves tell
 * @property prompt the user's message, in which `{request}` stands for the request; null for the usual one
 */
public data class RouterOptions(
    val confidence: Double = 0.6,
    val familiarity: Double? = null,
    val prompt: String? = null,
)

/**
 * What a [Router] says of a request.
 *
 * @property route the route's name; null: "I don't know"
 * @property ranking all routes with their probabilities, the likeliest first
 * @property familiarity how near the request comes to the nearest example, from -1 to 1; null without examples
 * @property doubt why the likeliest route is not to be taken; null where it is
 */
public data class Routing(
    val route: String?,
    val ranking: List<RankedRoute>,
    val familiarity: Double?,
    val doubt: Doubt?,
) {
    /** The probability of the likeliest route. */
    public val confidence: Double
        get() = ranking.first().probability
}

/**
 * A route and how likely it is.
 *
 * @property name the route's
 * @property probability from 0 to 1; those of all routes add up to 1
 */
public data class RankedRoute(val name: String, val probability: Double)

/** Why a [Router] does not know. */
public enum class Doubt {
    /** There is no request. */
    EMPTY,

    /** No route is likely enough. */
    UNSURE,

    /** The request is like none of the examples, or says less than any of them. */
    UNFAMILIAR,
}

/**
 * Picks the task for a request. [Engine.router] makes it, with a cache of its own: conversations are left alone.
 */
public class Router internal constructor(private val ffi: dev.calora.ffi.Router) : AutoCloseable {
    /** The familiarity below which it does not know; null without examples. */
    public val leastFamiliarity: Double?
        get() = ffi.leastFamiliarity()

    /**
     * Which task a request is for. An empty one is for none.
     *
     * @throws EngineException.ContextSizeExceeded if the request does not fit
     * @throws EngineException.Closed after [close] or [Engine.close]
     */
    public suspend fun route(request: String): Routing = awaitNative { ffi.route(request).toApi() }

    /** Frees its cache; every later request throws [EngineException.Closed]. Twice is fine. */
    override fun close(): Unit = ffi.shutDown()
}

private fun dev.calora.ffi.Route.toApi() = Route(name, answer, examples)

internal fun Route.toFfi() = dev.calora.ffi.Route(name, answer, examples)

private fun dev.calora.ffi.Routing.toApi() =
    Routing(
        route = route,
        ranking = ranking.map { RankedRoute(it.name, it.probability) },
        familiarity = familiarity,
        doubt =
            when (doubt) {
                null -> null
                dev.calora.ffi.Doubt.EMPTY -> Doubt.EMPTY
                dev.calora.ffi.Doubt.UNSURE -> Doubt.UNSURE
                dev.calora.ffi.Doubt.UNFAMILIAR -> Doubt.UNFAMILIAR
            },
    )
