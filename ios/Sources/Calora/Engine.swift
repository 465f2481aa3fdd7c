import Foundation
internal import CaloraBindings

/// A compressed model on a device, shared by sessions and adapters.
///
/// An engine is heavy: keep one for each model. Everything that computes runs on a thread of its own, so no call blocks
/// the caller's actor, and several sessions advance in turn.
///
/// ```swift
/// let engine = try await Engine.load(.init(model: modelFolder))
/// let spam = try await engine.adapters.open(spamFolder)
/// let session = try await engine.session(adapter: spam)
/// for try await chunk in session.streamResponse(to: "You have WON a free holiday") {
///     print(chunk.text, terminator: "")
/// }
/// ```
public final class Engine: Sendable {
    let core: CaloraBindings.Engine

    /// What the model is.
    public let modelInfo: ModelInfo
    /// What computes now; for a closed engine, what it was loaded on.
    public var deviceInfo: DeviceInfo {
        DeviceInfo(core.deviceInfo())
    }
    /// What loading planned, with the context and the budgets that it settled for.
    public let memoryPlan: MemoryPlan
    /// Opens task adapters for this model, file by file.
    public let adapters: Adapters

    private init(core: CaloraBindings.Engine) {
        self.core = core
        modelInfo = ModelInfo(core.modelInfo())
        memoryPlan = MemoryPlan(core.memoryPlan())
        adapters = Adapters(core: core)
    }

    /// Loads a model folder.
    ///
    /// - Parameters:
    ///   - configuration: Which model, on which device.
    ///   - progress: Told of loading, a few times a second at most and at the end, on the engine's thread.
    /// - Throws: ``EngineError``, or `CancellationError` when the task is cancelled; loading then stops.
    public static func load(
        _ configuration: Configuration,
        progress: (@Sendable (LoadProgress) -> Void)? = nil
    ) async throws -> Engine {
        try Task.checkCancellation()
        let config = try configuration.bindings()
        let bridge = LoadProgressBridge(progress)
        do {
            let core = try await withTaskCancellationHandler {
                try await CaloraBindings.Engine.load(config: config, progress: bridge)
            } onCancel: {
                bridge.cancel()
            }
            guard !bridge.isCancelled else {
                core.close()
                throw CancellationError()
            }
            return Engine(core: core)
        } catch {
            if bridge.isCancelled || error is CancellationError { throw CancellationError() }
            throw EngineError(error)
        }
    }

    /// Opens a folder of adapters; headers are read only.
    public func adapterLibrary(
        _ directory: URL, options: AdapterOpenOptions = .init()
    ) async throws(EngineError) -> AdapterLibrary {
        let library = try await engineErrors {
            try await core.adapterLibrary(directory: directory.filePath, options: options.bindings)
        }
        return AdapterLibrary(core: library)
    }

    /// Which adapters are on the device, and how full their budget is.
    public func residency() async throws(EngineError) -> Residency {
        Residency(try await engineErrors { try await core.residency() })
    }

    /// What the self-test of the GPU's kernels found, as one JSON object: which pass, which are not used and why, which run
    /// here. To be sent home from a device that answers strangely. Nil without ``Configuration/deviceFolder``, on the CPU, and
    /// between the loss of a device and the next use.
    public func deviceReport() async throws(EngineError) -> String? {
        try await engineErrors { try await core.deviceReport() }
    }

    /// Whether a configuration can be loaded here. Headers are read and devices asked; no weight is touched.
    public static func availability(for configuration: Configuration) async -> Availability {
        do {
            return Availability(CaloraBindings.availability(config: try configuration.bindings()))
        } catch {
            return .unavailable(reason: .invalidOption, detail: error.errorDescription ?? "")
        }
    }

    /// calora's version.
    public static var version: String {
        CaloraBindings.version()
    }

    /// A new conversation.
    ///
    /// - Parameters:
    ///   - adapter: The task; without one the base model answers.
    ///   - instructions: What the model is told before the conversation; by default what the adapter brings.
    public func session(
        adapter: TaskAdapter? = nil,
        instructions: String? = nil
    ) async throws(EngineError) -> Session {
        try await session(.init(adapters: adapter.map { [$0.scaled(by: 1)] } ?? [], instructions: instructions))
    }

    /// A new conversation with everything that can be said about it.
    public func session(_ configuration: Session.Configuration) async throws(EngineError) -> Session {
        let config = try configuration.bindings()
        return Session(core: try await engineErrors { try await core.session(config: config) })
    }

    /// Makes something that picks the task for a request. Examples are measured, a pass each; other sessions go on
    /// meanwhile.
    ///
    /// - Parameters:
    ///   - routes: The tasks, at least two.
    ///   - adapter: What was trained to give the routes' answers; without it these are descriptions, which the model
    ///     judges as it is.
    ///   - options: When it admits that it does not know.
    public func router(
        _ routes: [Route], adapter: TaskAdapter? = nil, options: RouterOptions = .init()
    ) async throws(EngineError) -> Router {
        let config = RouterConfig(
            routes: routes.map(\.bindings), adapters: adapter.map { [$0.scaled(by: 1).bindings] } ?? [],
            prompt: options.prompt, confidence: options.confidence, familiarity: options.familiarity)
        return Router(core: try await engineErrors { try await core.router(config: config) })
    }

    /// How many tokens a text has.
    public func countTokens(_ text: String) throws(EngineError) -> Int {
        Int(try engineErrors { try core.countTokens(text: text) })
    }

    /// Bytes on the device now; none between a loss and the next use.
    public func memory() async throws(EngineError) -> MemoryUse {
        MemoryUse(try await engineErrors { try await core.memory() })
    }

    /// What was computed since the engine was loaded.
    public func statistics() throws(EngineError) -> Statistics {
        Statistics(try engineErrors { try core.statistics() })
    }

    /// Frees memory that is not in use. Answers stay what they were.
    @discardableResult
    public func trim(_ level: MemoryPressure) async throws(EngineError) -> TrimReport {
        TrimReport(try await engineErrors { try await core.trim(level: level.bindings) })
    }

    /// Stops using the device; returns when it is idle. Requests wait and go on after ``resume()``.
    public func pause() async throws(EngineError) {
        try await engineErrors { try await core.pause() }
    }

    /// Goes on after ``pause()``.
    public func resume() throws(EngineError) {
        try engineErrors { try core.resume() }
    }

    /// Ends all sessions and frees the device's memory. Every later call throws ``EngineError/closed(what:)``; closing
    /// again does nothing. An engine that is no longer referenced closes itself.
    public func close() {
        core.close()
    }
}
