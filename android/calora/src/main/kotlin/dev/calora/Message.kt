package dev.calora

/**
 * One turn of a conversation.
 *
 * @property role who speaks
 * @property content what was said
 */
public data class Message(val role: Role, val content: String)

/** Who speaks. */
public enum class Role {
    /** Instructions. */
    SYSTEM,

    /** The app's user. */
    USER,

    /** The model. */
    ASSISTANT,
}

internal fun dev.calora.ffi.Message.toApi() =
    Message(
        when (role) {
            dev.calora.ffi.Role.SYSTEM -> Role.SYSTEM
            dev.calora.ffi.Role.USER -> Role.USER
            dev.calora.ffi.Role.ASSISTANT -> Role.ASSISTANT
        },
        content,
    )

internal fun Message.toFfi() =
    dev.calora.ffi.Message(
        when (role) {
            Role.SYSTEM -> dev.calora.ffi.Role.SYSTEM
            Role.USER -> dev.calora.ffi.Role.USER
            Role.ASSISTANT -> dev.calora.ffi.Role.ASSISTANT
        },
        content,
    )
