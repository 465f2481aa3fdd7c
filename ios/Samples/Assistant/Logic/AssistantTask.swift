/// What the assistant can do: one adapter each.
public enum AssistantTask: String, Sendable, Hashable, CaseIterable {
    case intent
    case spam
    case cleanQuestion = "clean-question"
    case sentiment

    /// The adapter's file or folder, beside the others.
    public var adapterName: String { rawValue }
}
