internal import CaloraBindings

/// One turn of a conversation.
public struct Message: Sendable, Hashable {
    /// Who speaks.
    public enum Role: Sendable, Hashable, CaseIterable {
        /// Instructions.
        case system
        /// The app's user.
        case user
        /// The model.
        case assistant
    }

    /// Who speaks.
    public var role: Role
    /// What was said.
    public var content: String

    /// A turn.
    public init(role: Role, content: String) {
        self.role = role
        self.content = content
    }

    init(_ message: CaloraBindings.Message) {
        let role: Role =
            switch message.role {
            case .system: .system
            case .user: .user
            case .assistant: .assistant
            }
        self.init(role: role, content: message.content)
    }

    var bindings: CaloraBindings.Message {
        let role: CaloraBindings.Role =
            switch role {
            case .system: .system
            case .user: .user
            case .assistant: .assistant
            }
        return CaloraBindings.Message(role: role, content: content)
    }
}
