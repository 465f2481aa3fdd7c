package dev.calora

/** What happened to the engine's device. None of it changes a token that was given; requests go on by themselves. */
public sealed interface EngineEvent {
    /**
     * The device went: the system took it away, or it refused work that was right. The next use makes it again.
     *
     * @property reason what the driver said
     */
    public data class DeviceLost(val reason: String) : EngineEvent

    /**
     * The same device was opened again and holds the weights; conversations are computed anew as they go on.
     *
     * @property device its name
     * @property seconds how long that took
     */
    public data class DeviceRebuilt(val device: String, val seconds: Double) : EngineEvent

    /**
     * The device could not be used again, and the CPU computes from now on.
     *
     * @property reason why
     * @property seconds how long that took
     */
    public data class MovedToCpu(val reason: String, val seconds: Double) : EngineEvent

    /**
     * Memory ran out, so adapters that no session used left the device and the work was tried again.
     *
     * @property what what there was no room for
     * @property evictedAdapters how many adapters left
     */
    public data class OutOfMemory(val what: String, val evictedAdapters: Int) : EngineEvent
}

internal fun dev.calora.ffi.EngineEvent.toApi(): EngineEvent =
    when (this) {
        is dev.calora.ffi.EngineEvent.DeviceLost -> EngineEvent.DeviceLost(reason)
        is dev.calora.ffi.EngineEvent.DeviceRebuilt -> EngineEvent.DeviceRebuilt(device, seconds)
        is dev.calora.ffi.EngineEvent.MovedToCpu -> EngineEvent.MovedToCpu(reason, seconds)
        is dev.calora.ffi.EngineEvent.OutOfMemory -> EngineEvent.OutOfMemory(what, evictedAdapters.toInt())
    }
