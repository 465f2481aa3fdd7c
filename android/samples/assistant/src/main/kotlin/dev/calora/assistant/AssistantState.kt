package dev.calora.assistant

import dev.calora.MemoryUse
import dev.calora.Usage
import kotlin.time.Duration

/**
 * What a screen shows.
 *
 * @property request what was asked
 * @property route what the router said; null where the user chose the task
 * @property task the task that answers
 * @property answer the answer so far
 * @property busy whether it is being worked on
 * @property swap how long attaching the task took; null where it was attached already
 * @property usage what the answer cost, once it is whole
 * @property memory what the engine holds, once the answer is whole
 * @property problem what went wrong, for people
 */
data class AssistantState(
    val request: String = "",
    val route: Route? = null,
    val task: Task? = null,
    val answer: String = "",
    val busy: Boolean = false,
    val swap: Duration? = null,
    val usage: Usage? = null,
    val memory: MemoryUse? = null,
    val problem: String? = null,
) {
    /** One line below the answer. */
    val figures: String
        get() =
            listOfNotNull(
                    swap?.let { "swapped in ${it.inWholeMicroseconds} us" },
                    usage?.let { "%.0f tokens/s".format(it.decodeTokensPerSecond) },
                    usage?.let { "first after ${it.timeToFirstToken.inWholeMilliseconds} ms" },
                    memory?.let { "%.1f MB".format(it.totalBytes / 1e6) },
                )
                .joinToString(" · ")
}
