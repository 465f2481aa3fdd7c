package dev.calora

import java.io.File

/**
 * What an adapter file says of itself.
 *
 * @property name the task's name
 * @property description what it does, for people
 * @property file the task file or PEFT folder
 * @property baseId the id of the base it was made for; null in a PEFT folder, where only shapes can be checked
 * @property bytes bytes of its branches in the file
 * @property modules modules that it touches
 * @property rank the largest rank beside one linear, its branches added up
 * @property hasLora whether it steers the model
 * @property hasRecovery whether it repairs compression, which ties it to one compressed model
 * @property instructions what it tells the model before a conversation
 * @property encrypted whether the file is encrypted
 * @property hasCanary whether it says what it does after a probe, so that it can be proven to act
 * @property signer the public key that signed it, in hexadecimal digits; only where trusted signers were asked for
 */
public data class AdapterInfo(
    val name: String,
    val description: String?,
    val file: File,
    val baseId: String?,
    val bytes: Long,
    val modules: Int,
    val rank: Int,
    val hasLora: Boolean,
    val hasRecovery: Boolean,
    val instructions: String?,
    val encrypted: Boolean,
    val hasCanary: Boolean,
    val signer: String?,
)

internal fun dev.calora.ffi.AdapterInfo.toApi() =
    AdapterInfo(
        name = name,
        description = description,
        file = File(path),
        baseId = baseId,
        bytes = bytes.toLong(),
        modules = modules.toInt(),
        rank = rank.toInt(),
        hasLora = hasLora,
        hasRecovery = hasRecovery,
        instructions = instructions,
        encrypted = encrypted,
        hasCanary = hasCanary,
        signer = signer,
    )
