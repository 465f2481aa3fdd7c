package dev.calora.assistant

/** Finds the task for a request. */
interface Router {
    suspend fun route(request: String): Route
}

/** Where a request goes. */
sealed interface Route {
    /** How sure the router is, from 0 to 1. */
    val confidence: Double

    data class To(val task: Task, override val confidence: Double) : Route

    /** "I don't know": the likeliest task is not likely enough, or the request is like nothing that the router knows. */
    data class Unknown(val guess: Task, override val confidence: Double) : Route
}

/** calora's router; its routes have the names of the tasks' adapters. */
class LibraryRouter(private val router: dev.calora.Router) : Router {
    override suspend fun route(request: String): Route {
        val routing = router.route(request)
        val likeliest = TASKS.first { it.adapter == routing.ranking.first().name }
        return if (routing.route != null) Route.To(likeliest, routing.confidence)
        else Route.Unknown(likeliest, routing.confidence)
    }
}
