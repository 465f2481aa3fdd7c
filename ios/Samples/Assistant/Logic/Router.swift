import Calora

/// Decides which task a request is for.
public protocol TaskRouter: Sendable {
    func route(_ request: String) async throws -> TaskRoute
}

/// A router's decision.
public struct TaskRoute: Sendable, Hashable {
    /// The task; `nil` means "I don't know".
    public let task: AssistantTask?
    /// How sure the router is of its likeliest task, from 0 to 1.
    public let confidence: Double

    public init(task: AssistantTask?, confidence: Double) {
        self.task = task
        self.confidence = confidence
    }
}

/// calora's router; its routes have the names of the tasks' adapters.
public struct LibraryRouter: TaskRouter {
    private let router: Router

    public init(_ router: Router) {
        self.router = router
    }

    public func route(_ request: String) async throws -> TaskRoute {
        let routing = try await router.route(request)
        return TaskRoute(task: routing.route.flatMap(AssistantTask.init(rawValue:)), confidence: routing.confidence)
    }
}
