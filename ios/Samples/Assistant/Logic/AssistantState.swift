import Calora

/// Everything the screen shows.
public struct AssistantState: Sendable, Hashable {
    /// What the router decided for the request in progress or the last one.
    public private(set) var route: TaskRoute?
    /// The task that is attached.
    public private(set) var task: AssistantTask?
    /// How long the last swap took.
    public private(set) var swap: Duration?
    /// The answer so far.
    public private(set) var answer = ""
    /// What the answer cost.
    public private(set) var usage: Usage?
    /// What went wrong.
    public private(set) var problem: String?
    /// Whether a request is in progress.
    public private(set) var isBusy = false

    public init() {}

    /// A request begins.
    public mutating func begin() {
        (route, swap, usage, problem) = (nil, nil, nil, nil)
        answer = ""
        isBusy = true
    }

    public mutating func apply(_ event: Assistant.Event) {
        switch event {
        case .routed(let decision):
            route = decision
            if decision.task == nil { answer = "I don't know what to do with that." }
        case .swapped(let attached, let duration):
            task = attached
            swap = duration
        case .text(let text):
            answer += text
        case .finished(let cost):
            usage = cost
        }
    }

    /// The request is over; a cancelled one is no problem.
    public mutating func end(_ error: (any Error)? = nil) {
        isBusy = false
        if let error, !(error is CancellationError) {
            problem = (error as? EngineError)?.errorDescription ?? String(describing: error)
        }
    }
}
