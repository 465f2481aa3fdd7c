package dev.calora

import dev.calora.ffi.EngineException as FfiException
import dev.calora.ffi.InternalException
import kotlin.coroutines.resumeWithException
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.launch
import kotlinx.coroutines.suspendCancellableCoroutine

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

/**
 * Calls under way, also those whose caller is gone. They resume here, not on the engine's thread, which must not wait.
 */
private val calls = CoroutineScope(SupervisorJob() + Dispatchers.Default)

/**
 * Awaits a call into Rust. uniffi's futures leak a result that has come and is not fetched any more, so a call always
 * runs to its end; what a cancelled caller does not want is handed to [drop].
 */
internal suspend fun <T> awaitNative(drop: (T) -> Unit = {}, call: suspend () -> T): T =
    suspendCancellableCoroutine { caller ->
        calls.launch {
            try {
                caller.resume(native { call() }) { _, unwanted, _ -> drop(unwanted) }
            } catch (e: Throwable) {
                caller.resumeWithException(e)
            }
        }
    }

internal fun FfiException.translated(): Exception =
    when (this) {
        is FfiException.FileNotFound -> EngineException.FileNotFound(path, reason)
        is FfiException.FileUnreadable -> EngineException.FileUnreadable(path, reason)
        is FfiException.InvalidFile -> EngineException.InvalidFile(path, reason)
        is FfiException.Unsupported -> EngineException.Unsupported(path, feature, reason)
        is FfiException.AdapterMismatch -> EngineException.AdapterMismatch(adapter, expectedBase, actualBase)
        is FfiException.AdapterTouchesNothing -> EngineException.AdapterTouchesNothing(adapter, reason)
        is FfiException.AdapterLocked -> EngineException.AdapterLocked(path, reason)
        is FfiException.AdapterUntrusted -> EngineException.AdapterUntrusted(path, reason)
        is FfiException.AdapterUnproven -> EngineException.AdapterUnproven(adapter, reason)
        is FfiException.FileChanged -> EngineException.FileChanged(path)
        is FfiException.VersionConflict -> EngineException.VersionConflict(adapter, expected, actual)
        is FfiException.ContextSizeExceeded ->
            EngineException.ContextSizeExceeded(contextSize.toLong(), tokenCount.toLong())
        is FfiException.InvalidOption -> EngineException.InvalidOption(option, value, reason)
        is FfiException.DeviceUnavailable -> EngineException.DeviceUnavailable(wanted, reason)
        is FfiException.DeviceLost -> EngineException.DeviceLost(reason)
        is FfiException.OutOfMemory -> EngineException.OutOfMemory(what, neededBytes.toLong(), reason)
        is FfiException.DoesNotFit -> EngineException.DoesNotFit(plan.toApi(), reason)
        is FfiException.Busy -> EngineException.Busy()
        is FfiException.Closed -> EngineException.Closed(what)
        is FfiException.Internal -> EngineException.Internal(reason)
        is FfiException.Cancelled -> CancellationException("the request was cancelled")
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
