package dev.calora.assistant

import dev.calora.Choice

/** Finds the task for a request. */
interface Router {
    suspend fun route(request: String): Route
}

/** Where a request goes. */
sealed interface Route {
    /** How sure the router is, from 0 to 1. */
    val confidence: Double

    data class To(val task: Task, override val confidence: Double) : Route

    /** "I don't know": the likeliest task is not likely enough. */
    data class Unknown(val guess: Task, override val confidence: Double) : Route
}

/** Says how likely each label is for a request; a session with the router's adapter does, by `classify`. */
fun interface Scorer {
    suspend fun score(request: String, labels: List<String>): List<Choice>
}

/**
 * Asks which label is likeliest, and admits when none stands out.
 *
 * @param threshold the least share of the likeliest label
 */
class ClassifyingRouter(
    private val scorer: Scorer,
    private val tasks: List<Task> = TASKS,
    private val threshold: Double = 0.75,
) : Router {
    override suspend fun route(request: String): Route {
        val choices = scorer.score(request, tasks.map { it.label })
        val best = choices.maxBy { it.probability }
        val task = tasks.first { it.label == best.text }
        return if (best.probability >= threshold) Route.To(task, best.probability)
        else Route.Unknown(task, best.probability)
    }
}
