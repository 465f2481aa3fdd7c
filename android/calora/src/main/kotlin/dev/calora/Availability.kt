package dev.calora

/** Whether a model can run here, asked before anything is loaded ([Engine.availability]). */
public sealed interface Availability {
    /**
     * It can, as far as headers and device tell.
     *
     * @property weightBytes bytes of its weights
     * @property device the device that would compute
     */
    public data class Available(val weightBytes: Long, val device: String) : Availability

    /**
     * It cannot.
     *
     * @property reason why, for programs
     * @property detail why, for people
     */
    public data class Unavailable(val reason: Reason, val detail: String) : Availability

    /** Why a model cannot run. */
    public enum class Reason {
        /** A file of the model is missing: download it. */
        MODEL_MISSING,

        /** A file of the model is damaged: download it again. */
        MODEL_DAMAGED,

        /** The model asks for something this version does not compute. */
        MODEL_UNSUPPORTED,

        /** A GPU was asked for and none is usable. */
        NO_DEVICE,

        /** It would take more memory than there is; [Engine.plan] has the numbers. */
        NOT_ENOUGH_MEMORY,

        /** An option of the configuration cannot work. */
        INVALID_OPTION,

        /** Something else; the detail says what. */
        OTHER,
    }
}

internal fun dev.calora.ffi.Availability.toApi(): Availability =
    when (this) {
        is dev.calora.ffi.Availability.Available -> Availability.Available(weightBytes.toLong(), device)
        is dev.calora.ffi.Availability.Unavailable -> Availability.Unavailable(reason.toApi(), detail)
    }

private fun dev.calora.ffi.UnavailableReason.toApi() =
    when (this) {
        dev.calora.ffi.UnavailableReason.MODEL_MISSING -> Availability.Reason.MODEL_MISSING
        dev.calora.ffi.UnavailableReason.MODEL_DAMAGED -> Availability.Reason.MODEL_DAMAGED
        dev.calora.ffi.UnavailableReason.MODEL_UNSUPPORTED -> Availability.Reason.MODEL_UNSUPPORTED
        dev.calora.ffi.UnavailableReason.NO_DEVICE -> Availability.Reason.NO_DEVICE
        dev.calora.ffi.UnavailableReason.NOT_ENOUGH_MEMORY -> Availability.Reason.NOT_ENOUGH_MEMORY
        dev.calora.ffi.UnavailableReason.INVALID_OPTION -> Availability.Reason.INVALID_OPTION
        dev.calora.ffi.UnavailableReason.OTHER -> Availability.Reason.OTHER
    }
