#if canImport(os)
    import os

    /// Writes the engine's log lines to the system's log.
    ///
    /// ```swift
    /// Engine.setLogSink(OSLogSink(subsystem: "com.example.app"))
    /// ```
    public struct OSLogSink: LogSink {
        private let logger: Logger

        /// A sink.
        ///
        /// - Parameters:
        ///   - subsystem: Usually the app's bundle identifier.
        ///   - category: The name under which the lines can be filtered.
        public init(subsystem: String, category: String = "calora") {
            logger = Logger(subsystem: subsystem, category: category)
        }

        /// Writes one line. Lines hold no prompt and no answer, so they are public.
        public func log(level: LogLevel, category: String, line: String) {
            switch level {
            case .off: break
            case .error: logger.error("\(category, privacy: .public): \(line, privacy: .public)")
            case .warning: logger.warning("\(category, privacy: .public): \(line, privacy: .public)")
            case .info: logger.info("\(category, privacy: .public): \(line, privacy: .public)")
            case .debug: logger.debug("\(category, privacy: .public): \(line, privacy: .public)")
            }
        }
    }
#endif
