internal import CaloraBindings

extension Session {
    /// How a session begins.
    public struct Configuration: Sendable {
        /// Adapters attached from the start; their ranks add up.
        public var adapters: [ScaledAdapter]
        /// What the model is told before the conversation; by default what the first adapter brings.
        public var instructions: String?
        /// Tokens that the session holds; by default the engine's context size.
        public var contextSize: Int?
        /// How much its work matters beside that of other sessions; by default foreground.
        public var priority: Priority

        /// A configuration.
        public init(
            adapters: [ScaledAdapter] = [],
            instructions: String? = nil,
            contextSize: Int? = nil,
            priority: Priority = .foreground
        ) {
            self.adapters = adapters
            self.instructions = instructions
            self.contextSize = contextSize
            self.priority = priority
        }

        func bindings() throws(EngineError) -> CaloraBindings.SessionConfig {
            CaloraBindings.SessionConfig(
                adapters: adapters.map(\.bindings),
                instructions: instructions,
                contextSize: try count(contextSize, "context_size"),
                priority: priority.bindings
            )
        }
    }
}
