package dev.calora.assistant

/**
 * Something the assistant can do: an adapter, and how the router calls requests for it.
 *
 * @property adapter the adapter's name in `models/adapters`
 * @property label what the router answers for such a request
 * @property title for people
 * @property maxTokens the longest answer
 */
data class Task(val adapter: String, val label: String, val title: String, val maxTokens: Int)

/** What the shipped adapters do. */
val TASKS =
    listOf(
        Task("intent", "command", "What does it want?", maxTokens = 16),
        Task("spam", "message", "Is it spam?", maxTokens = 4),
        Task("clean-question", "question", "Clean up the question", maxTokens = 48),
        Task("sentiment", "review", "Did they like it?", maxTokens = 4),
    )
