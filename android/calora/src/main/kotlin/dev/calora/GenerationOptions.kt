package dev.calora

/**
 * How a response is generated; what is null follows the adapter, then the model, then the stated default.
 *
 * @property maxTokens the most tokens that are generated; by default as many as the context holds
 * @property temperature divides the logits; 0, the default, always takes the likeliest token
 * @property topK only the k likeliest tokens; 0, the default, switches it off
 * @property topP only the likeliest tokens that together reach this probability, in (0, 1]; by default 1
 * @property minP only tokens at least this fraction as likely as the likeliest, in [0, 1]; by default 0
 * @property repetitionPenalty above 1 makes tokens seen so far less likely; by default 1
 * @property seed same seed, same model, same device: same text; by default a new one each time
 * @property stop texts that end the response; they are not part of it
 * @property adapterScales how strongly each attached adapter acts in this response, in the order in which they are attached:
 *   1 as trained, 0 as if it were not there; by default the scales that they are attached with. What the conversation holds
 *   was computed with other scales, so a change computes it anew
 */
public data class GenerationOptions(
    val maxTokens: Int? = null,
    val temperature: Float? = null,
    val topK: Int? = null,
    val topP: Float? = null,
    val minP: Float? = null,
    val repetitionPenalty: Float? = null,
    val seed: Long? = null,
    val stop: List<String> = emptyList(),
    val adapterScales: List<Float> = emptyList(),
)

internal fun GenerationOptions.toFfi() =
    dev.calora.ffi.GenerationOptions(
        maxTokens = maxTokens?.unsigned("maxTokens"),
        temperature = temperature,
        topK = topK?.unsigned("topK"),
        topP = topP,
        minP = minP,
        repetitionPenalty = repetitionPenalty,
        // All 64 bits count, so a negative seed is one too.
        seed = seed?.toULong(),
        stop = stop,
        adapterScales = adapterScales,
    )
