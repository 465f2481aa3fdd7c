package dev.calora

/** How much a session's work matters beside that of others of its engine. */
public enum class SessionPriority {
    /** Somebody waits for it: sessions of this priority advance in turn, and decode together. */
    FOREGROUND,

    /**
     * Nobody does: its work, one pass of the device at a time, runs only while no foreground work waits. It may wait for
     * as long as that lasts.
     */
    BACKGROUND,
}

internal fun SessionPriority.toFfi() =
    when (this) {
        SessionPriority.FOREGROUND -> dev.calora.ffi.SessionPriority.FOREGROUND
        SessionPriority.BACKGROUND -> dev.calora.ffi.SessionPriority.BACKGROUND
    }
