import Calora
import Foundation

/// One model, one session that swaps between tasks, and a router that says to which.
public actor Assistant {
    private let engine: Engine
    private let router: any TaskRouter
    private let adapters: [AssistantTask: TaskAdapter]
    private let session: Session
    private var attached: AssistantTask?

    /// What the user sees of a request, in this order. A request that nobody knows ends after `routed`.
    public enum Event: Sendable, Hashable {
        /// Which task was chosen, and how surely.
        case routed(TaskRoute)
        /// The task is attached; how long that took. Left out when it was attached already.
        case swapped(AssistantTask, Duration)
        /// Text to append.
        case text(String)
        /// The end, and what it cost.
        case finished(Usage)
    }

    /// Opens every task's adapter in a folder, without moving a byte of them.
    ///
    /// - Parameter router: By default the adapter `router` in the same folder.
    public init(engine: Engine, adapters folder: URL, router: (any TaskRouter)? = nil) async throws {
        self.engine = engine
        var adapters: [AssistantTask: TaskAdapter] = [:]
        for task in AssistantTask.allCases {
            adapters[task] = try await engine.adapters.open(folder.appendingPathComponent(task.adapterName))
        }
        self.adapters = adapters
        if let router {
            self.router = router
        } else {
            let place = folder.appendingPathComponent("router")
            let adapter = try await engine.adapters.open(place)
            // The routes lie beside the router's adapter.
            let routes = try Route.read(place.appendingPathComponent("routes.json"))
            self.router = LibraryRouter(try await engine.router(routes, adapter: adapter))
        }
        session = try await engine.session()
    }

    /// Routes a request, swaps to its task and answers it. Cancelling the reader's task stops it.
    public nonisolated func events(for request: String) -> AsyncThrowingStream<Event, any Error> {
        AsyncThrowingStream { continuation in
            let work = Task {
                do {
                    try await answer(request) { continuation.yield($0) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in work.cancel() }
        }
    }

    private func answer(_ request: String, _ send: @Sendable (Event) -> Void) async throws {
        let route = try await router.route(request)
        send(.routed(route))
        guard let task = route.task else { return }
        try Task.checkCancellation()
        if attached != task {
            let clock = ContinuousClock()
            let began = clock.now
            try await session.switchTo(adapters[task])
            attached = task
            send(.swapped(task, clock.now - began))
        }
        // Every request stands for itself.
        try await session.reset()
        for try await chunk in session.streamResponse(to: request) {
            if !chunk.text.isEmpty { send(.text(chunk.text)) }
            if let usage = chunk.usage { send(.finished(usage)) }
        }
    }

    /// Facts for a bug report; nothing that the user wrote or the model answered.
    public func diagnostics(last usage: Usage? = nil) async throws -> String {
        Diagnostics(
            version: Engine.version, model: engine.modelInfo, device: engine.deviceInfo,
            memory: try await engine.memory(), task: attached, usage: usage
        ).text
    }
}
