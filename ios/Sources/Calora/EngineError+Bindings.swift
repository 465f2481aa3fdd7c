internal import CaloraBindings

extension EngineError {
    /// Any error that comes out of the generated code.
    init(_ error: any Error) {
        switch error {
        case let error as EngineError: self = error
        case let error as CaloraBindings.EngineError: self.init(error)
        // uniffi's own: a panic, a buffer of another version.
        default: self = .internal(reason: String(describing: error))
        }
    }

    private init(_ error: CaloraBindings.EngineError) {
        switch error {
        case .FileNotFound(let path, let reason): self = .fileNotFound(path: path, reason: reason)
        case .FileUnreadable(let path, let reason): self = .fileUnreadable(path: path, reason: reason)
        case .InvalidFile(let path, let reason): self = .invalidFile(path: path, reason: reason)
        case .Unsupported(let path, let feature, let reason):
            self = .unsupported(path: path, feature: feature, reason: reason)
        case .AdapterMismatch(let adapter, let expected, let actual):
            self = .adapterMismatch(adapter: adapter, expectedBase: expected, actualBase: actual)
        case .AdapterTouchesNothing(let adapter, let reason):
            self = .adapterTouchesNothing(adapter: adapter, reason: reason)
        case .AdapterLocked(let path, let reason): self = .adapterLocked(path: path, reason: reason)
        case .AdapterUntrusted(let path, let reason): self = .adapterUntrusted(path: path, reason: reason)
        case .AdapterUnproven(let adapter, let reason): self = .adapterUnproven(adapter: adapter, reason: reason)
        case .FileChanged(let path): self = .fileChanged(path: path)
        case .VersionConflict(let adapter, let expected, let actual):
            self = .versionConflict(adapter: adapter, expected: expected, actual: actual)
        case .ContextSizeExceeded(let size, let count):
            self = .contextSizeExceeded(contextSize: Int(clamping: size), tokenCount: Int(clamping: count))
        case .InvalidOption(let option, let value, let reason):
            self = .invalidOption(option: option, value: value, reason: reason)
        case .DeviceUnavailable(let wanted, let reason): self = .deviceUnavailable(wanted: wanted, reason: reason)
        case .DeviceLost(let reason): self = .deviceLost(reason: reason)
        case .OutOfMemory(let what, let bytes, let reason):
            self = .outOfMemory(what: what, neededBytes: bytes, reason: reason)
        case .DoesNotFit(let plan, let reason): self = .doesNotFit(plan: MemoryPlan(plan), reason: reason)
        case .Busy: self = .busy
        case .Closed(let what): self = .closed(what: what)
        // Streams and loads turn it into CancellationError before it comes here.
        case .Cancelled: self = .internal(reason: "cancelled")
        case .Internal(let reason): self = .internal(reason: reason)
        }
    }
}

extension Error {
    /// Whether the engine says that a request was cancelled.
    var saysCancelled: Bool {
        if case .Cancelled? = self as? CaloraBindings.EngineError { true } else { false }
    }
}

/// Runs generated code and throws our errors only.
func engineErrors<Result>(_ body: () throws -> Result) throws(EngineError) -> Result {
    do {
        return try body()
    } catch {
        throw EngineError(error)
    }
}

/// ``engineErrors(_:)-(()->Result)`` for what waits.
func engineErrors<Result>(_ body: () async throws -> Result) async throws(EngineError) -> Result {
    do {
        return try await body()
    } catch {
        throw EngineError(error)
    }
}

/// A count as the engine takes it. What does not fit is an error, not a trap.
func count(_ value: Int?, _ option: String) throws(EngineError) -> UInt32? {
    guard let value else { return nil }
    guard let count = UInt32(exactly: value) else {
        throw .invalidOption(option: option, value: String(value), reason: "give a whole number from 0 to \(UInt32.max)")
    }
    return count
}
