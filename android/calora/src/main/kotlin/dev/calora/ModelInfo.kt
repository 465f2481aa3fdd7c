package dev.calora

import java.io.File

/**
 * What the loaded model is.
 *
 * @property folder its folder
 * @property architecture `model_type` of its configuration
 * @property scheme how the weights are stored, for people: `int4 g32`, `bf16`
 * @property layers layers
 * @property hiddenSize channels of the residual stream
 * @property vocabularySize tokens of the vocabulary
 * @property contextSize tokens that a session holds
 * @property maxContextSize tokens that the model was made for
 * @property hasChatTemplate whether prompts are messages of a conversation; else they are plain text to be continued
 */
public data class ModelInfo(
    val folder: File,
    val architecture: String,
    val scheme: String,
    val layers: Int,
    val hiddenSize: Int,
    val vocabularySize: Int,
    val contextSize: Int,
    val maxContextSize: Int,
    val hasChatTemplate: Boolean,
)

internal fun dev.calora.ffi.ModelInfo.toApi() =
    ModelInfo(
        folder = File(folder),
        architecture = architecture,
        scheme = scheme,
        layers = layers.toInt(),
        hiddenSize = hiddenSize.toInt(),
        vocabularySize = vocabularySize.toInt(),
        contextSize = contextSize.toInt(),
        maxContextSize = maxContextSize.toInt(),
        hasChatTemplate = hasChatTemplate,
    )
