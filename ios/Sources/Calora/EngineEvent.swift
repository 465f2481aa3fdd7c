internal import CaloraBindings

/// What happened to the engine's device. None of it changes a token that was given; requests go on by themselves.
public enum EngineEvent: Sendable, Hashable {
    /// The device went: the system took it away, or it refused work that was right. The next use makes it again.
    case deviceLost(reason: String)
    /// The same device, by name, was opened again and holds the weights; conversations are computed anew as they go on.
    case deviceRebuilt(device: String, seconds: Double)
    /// The device could not be used again, and the CPU computes from now on.
    case movedToCPU(reason: String, seconds: Double)
    /// Memory ran out, so adapters that no session used left the device and the work was tried again.
    case outOfMemory(what: String, evictedAdapters: Int)

    init(_ event: CaloraBindings.EngineEvent) {
        switch event {
        case .deviceLost(let reason): self = .deviceLost(reason: reason)
        case .deviceRebuilt(let device, let seconds): self = .deviceRebuilt(device: device, seconds: seconds)
        case .movedToCpu(let reason, let seconds): self = .movedToCPU(reason: reason, seconds: seconds)
        case .outOfMemory(let what, let adapters): self = .outOfMemory(what: what, evictedAdapters: Int(adapters))
        }
    }
}

extension Engine {
    /// What happens to the device from now on. Nobody has to listen; the stream ends when the engine is closed, and keeps
    /// the last 64 events for a slow reader.
    public var events: AsyncStream<EngineEvent> {
        let core = core.events()
        return AsyncStream(bufferingPolicy: .bufferingNewest(64)) { continuation in
            let reader = Task {
                while let event = await core.next() { continuation.yield(EngineEvent(event)) }
                continuation.finish()
            }
            continuation.onTermination = { _ in
                core.cancel()
                reader.cancel()
            }
        }
    }

    /// Gives the device up as if the system had taken it, also while paused: for tests of an app. The next use makes it
    /// again; waits for the pass in progress.
    public func simulateDeviceLoss() throws(EngineError) {
        try engineErrors { try core.simulateDeviceLoss() }
    }
}
