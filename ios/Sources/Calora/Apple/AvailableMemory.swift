#if os(iOS) || os(tvOS) || os(watchOS) || os(visionOS)
    import os

    extension Engine {
        /// Bytes that the system still lets this process use; 0 when it does not say.
        ///
        /// The increased-memory-limit entitlement raises it on devices with much memory.
        public static var availableMemory: Int {
            os_proc_available_memory()
        }
    }
#endif
