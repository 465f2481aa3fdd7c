/// What the assistant can do: one adapter each.
public enum AssistantTask: String, Sendable, Hashable, CaseIterable {
    case intent
    case spam
    case cleanQuestion = "clean-question"
    case sentiment

    /// How the router names a request of this task.
    public var label: String {
        switch self {
        case .intent: "command"
        case .spam: "message"
        case .cleanQuestion: "question"
        case .sentiment: "review"
        }
    }

    /// The adapter's file or folder, beside the others.
    public var adapterName: String { rawValue }

    public init?(label: String) {
        guard let task = Self.allCases.first(where: { $0.label == label }) else { return nil }
        self = task
    }
}
