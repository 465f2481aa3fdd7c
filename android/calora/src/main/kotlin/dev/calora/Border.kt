package dev.calora

import dev.calora.ffi.EngineException as FfiException
import dev.calora.ffi.InternalException
import kotlinx.coroutines.CancellationException

/** Runs a call into Rust; what it throws comes out as this package's exceptions. */
internal inline fun <T> native(call: () -> T): T =
    try {
        call()
    } catch (e: FfiException) {
        throw e.translated()
    } catch (e: InternalException) {
        // A panic in Rust.
        throw EngineException.Internal(e.message ?: "unknown")
    }

internal fun FfiException.translated(): Exception {
    val translated =
        when (this) {
            is FfiException.FileNotFound -> EngineException.FileNotFound(path, reason)
            is FfiException.FileUnreadable -> EngineException.FileUnreadable(path, reason)
            is FfiException.InvalidFile -> EngineException.InvalidFile(path, reason)
            is FfiException.Unsupported -> EngineException.Unsupported(path, feature, reason)
            is FfiException.AdapterMismatch -> EngineException.AdapterMismatch(adapter, expectedBase, actualBase)
            is FfiException.AdapterTouchesNothing -> EngineException.AdapterTouchesNothing(adapter, reason)
            is FfiException.ContextSizeExceeded ->
                EngineException.ContextSizeExceeded(contextSize.toLong(), tokenCount.toLong())
            is FfiException.InvalidOption -> EngineException.InvalidOption(option, value, reason)
            is FfiException.DeviceUnavailable -> EngineException.DeviceUnavailable(wanted, reason)
            is FfiException.DeviceLost -> EngineException.DeviceLost(reason)
            is FfiException.OutOfMemory -> EngineException.OutOfMemory(what, neededBytes.toLong(), reason)
            is FfiException.Busy -> EngineException.Busy()
            is FfiException.Closed -> EngineException.Closed(what)
            is FfiException.Internal -> EngineException.Internal(reason)
            is FfiException.Cancelled -> CancellationException("the request was cancelled")
        }
    return translated
}

/** A size as Rust takes it. */
internal fun Int.unsigned(option: String): UInt {
    if (this < 0) throw EngineException.InvalidOption(option, toString(), "must not be negative")
    return toUInt()
}

/** A size as Rust takes it. */
internal fun Long.unsigned(option: String): ULong {
    if (this < 0) throw EngineException.InvalidOption(option, toString(), "must not be negative")
    return toULong()
}
