internal import CaloraBindings

/// How far loading is.
public struct LoadProgress: Sendable, Hashable {
    /// Bytes of weights placed.
    public let loadedBytes: UInt64
    /// Bytes of all weights.
    public let totalBytes: UInt64
    /// From 0 to 1; 1 exactly once, at the end.
    public let fraction: Double
}

/// Passes progress on, and tells the engine when nobody waits any more.
final class LoadProgressBridge: CaloraBindings.LoadProgress, Sendable {
    private let report: (@Sendable (LoadProgress) -> Void)?
    private let cancelled = Locked(false)

    init(_ report: (@Sendable (LoadProgress) -> Void)?) {
        self.report = report
    }

    var isCancelled: Bool {
        cancelled.withLock { $0 }
    }

    func cancel() {
        cancelled.withLock { $0 = true }
    }

    func onProgress(state: CaloraBindings.LoadState) throws {
        guard !isCancelled else { throw CaloraBindings.EngineError.Cancelled }
        report?(LoadProgress(
            loadedBytes: state.loadedBytes, totalBytes: state.totalBytes, fraction: state.fraction
        ))
    }
}
