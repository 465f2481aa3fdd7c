internal import CaloraBindings

extension Session {
    /// How much a session's work matters beside that of others of its engine.
    public enum Priority: Sendable, Hashable, CaseIterable {
        /// Somebody waits for it: sessions of this priority advance in turn, and decode together.
        case foreground
        /// Nobody does: its work, one pass of the device at a time, runs only while no foreground work waits. It may wait for
        /// as long as that lasts.
        case background

        var bindings: CaloraBindings.SessionPriority {
            switch self {
            case .foreground: .foreground
            case .background: .background
            }
        }
    }
}
