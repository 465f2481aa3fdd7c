package dev.calora.assistant

/**
 * Something the assistant can do.
 *
 * @property adapter the adapter's name in `models/adapters`
 * @property title for people
 * @property maxTokens the longest answer
 */
data class Task(val adapter: String, val title: String, val maxTokens: Int)

/** What the shipped adapters do. */
val TASKS =
    listOf(
        Task("intent", "What does it want?", maxTokens = 16),
        Task("spam", "Is it spam?", maxTokens = 4),
        Task("clean-question", "Clean up the question", maxTokens = 48),
        Task("sentiment", "Did they like it?", maxTokens = 4),
    )
