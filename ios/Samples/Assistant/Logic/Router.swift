import Calora

/// Decides which task a request is for.
public protocol Router: Sendable {
    func route(_ request: String) async throws -> Route
}

/// A router's decision.
public struct Route: Sendable, Hashable {
    /// The task; `nil` means "I don't know".
    public let task: AssistantTask?
    /// How sure the router is of its likeliest task, from 0 to 1.
    public let confidence: Double

    public init(task: AssistantTask?, confidence: Double) {
        self.task = task
        self.confidence = confidence
    }
}

/// Says how likely each label is for a request. What asks a model in the app, and a table in a test.
public protocol Scorer: Sendable {
    func scores(_ request: String, labels: [String]) async throws -> [Choice]
}

/// Asks a session that the router's adapter is attached to.
public struct SessionScorer: Scorer {
    private let session: Session

    public init(_ session: Session) {
        self.session = session
    }

    public func scores(_ request: String, labels: [String]) async throws -> [Choice] {
        try await session.classify(request, choices: labels)
    }
}

/// Takes the likeliest task, if it is likely enough.
public struct ClassifyingRouter<Scoring: Scorer>: Router {
    private let scorer: Scoring
    private let threshold: Double

    /// - Parameter threshold: Below it the answer is "I don't know".
    public init(_ scorer: Scoring, threshold: Double = 0.6) {
        self.scorer = scorer
        self.threshold = threshold
    }

    public func route(_ request: String) async throws -> Route {
        let scores = try await scorer.scores(request, labels: AssistantTask.allCases.map(\.label))
        guard let best = scores.max(by: { $0.probability < $1.probability }) else {
            return Route(task: nil, confidence: 0)
        }
        let sure = best.probability >= threshold
        return Route(task: sure ? AssistantTask(label: best.text) : nil, confidence: best.probability)
    }
}
