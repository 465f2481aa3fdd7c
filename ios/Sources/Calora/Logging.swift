internal import CaloraBindings

/// How much is logged.
public enum LogLevel: Sendable, Hashable, CaseIterable {
    /// Nothing.
    case off
    /// What failed.
    case error
    /// What may be wrong.
    case warning
    /// What happens, a few lines a load.
    case info
    /// Details.
    case debug
}

/// Receives the engine's log lines, from any thread. Prompts and answers are never among them.
///
/// A sink must not call the engine.
public protocol LogSink: Sendable {
    /// One line.
    ///
    /// - Parameters:
    ///   - level: How serious it is.
    ///   - category: The part of the engine that says it.
    ///   - line: The line, without a line break at its end.
    func log(level: LogLevel, category: String, line: String)
}

extension Engine {
    /// How much is logged, in the whole process; warnings and errors unless told.
    public static func setLogLevel(_ level: LogLevel) {
        CaloraBindings.setLogLevel(level: level.bindings)
    }

    /// Where log lines go, in the whole process; `nil` to stop.
    public static func setLogSink(_ sink: (any LogSink)?) {
        CaloraBindings.setLogSink(sink: sink.map(LogBridge.init))
    }
}

private final class LogBridge: CaloraBindings.LogSink, Sendable {
    private let sink: any LogSink

    init(_ sink: any LogSink) {
        self.sink = sink
    }

    func onLog(level: CaloraBindings.LogLevel, target: String, line: String) throws {
        sink.log(level: LogLevel(level), category: target, line: line)
    }
}

extension LogLevel {
    fileprivate var bindings: CaloraBindings.LogLevel {
        switch self {
        case .off: .off
        case .error: .error
        case .warning: .warning
        case .info: .info
        case .debug: .debug
        }
    }

    fileprivate init(_ level: CaloraBindings.LogLevel) {
        switch level {
        case .off: self = .off
        case .error: self = .error
        case .warning: self = .warning
        case .info: self = .info
        case .debug: self = .debug
        }
    }
}
