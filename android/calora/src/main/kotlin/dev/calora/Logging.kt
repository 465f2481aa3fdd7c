package dev.calora

/** How much is logged. */
public enum class LogLevel {
    /** Nothing. */
    OFF,

    /** What failed. */
    ERROR,

    /** What may be wrong. */
    WARNING,

    /** What happens, a few lines a load. */
    INFO,

    /** Details. */
    DEBUG,
}

/** Receives the engine's log lines besides logcat. Prompts and answers are never among them. */
public fun interface LogSink {
    /** One line, from any thread. It must not call the engine; what it throws is ignored. */
    public fun log(level: LogLevel, target: String, line: String)
}

internal fun LogLevel.toFfi() =
    when (this) {
        LogLevel.OFF -> dev.calora.ffi.LogLevel.OFF
        LogLevel.ERROR -> dev.calora.ffi.LogLevel.ERROR
        LogLevel.WARNING -> dev.calora.ffi.LogLevel.WARNING
        LogLevel.INFO -> dev.calora.ffi.LogLevel.INFO
        LogLevel.DEBUG -> dev.calora.ffi.LogLevel.DEBUG
    }

internal class LogForward(private val sink: LogSink) : dev.calora.ffi.LogSink {
    override fun onLog(level: dev.calora.ffi.LogLevel, target: String, line: String) =
        sink.log(
            when (level) {
                dev.calora.ffi.LogLevel.OFF -> LogLevel.OFF
                dev.calora.ffi.LogLevel.ERROR -> LogLevel.ERROR
                dev.calora.ffi.LogLevel.WARNING -> LogLevel.WARNING
                dev.calora.ffi.LogLevel.INFO -> LogLevel.INFO
                dev.calora.ffi.LogLevel.DEBUG -> LogLevel.DEBUG
            },
            target,
            line,
        )
}
