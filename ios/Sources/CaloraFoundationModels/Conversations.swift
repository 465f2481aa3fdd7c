#if canImport(FoundationModels) && (compiler(>=6.4) || os(Linux))
    import Calora
    import Foundation

    /// The calora sessions behind one executor: a few KV caches, each for the conversation it has computed most of.
    @available(iOS 27.0, macOS 27.0, *)
    actor Conversations {
        /// More would be memory for conversations that an app rarely holds at once.
        static let kept = 2

        private struct Idle {
            let session: Session
            let instructions: String?
        }

        private let configuration: TaskLanguageModelExecutor.Configuration
        private var idle: [Idle] = []
        private var engine: UUID?
        /// A prewarming in progress: the first request wants its session.
        private var warming: Task<Void, any Error>?
        private var hasBegun = false

        init(_ configuration: TaskLanguageModelExecutor.Configuration) {
            self.configuration = configuration
        }

        /// A session that holds the conversation's past: the one with the longest common beginning, brought up to it. What
        /// the two have in common is not computed again.
        func take(_ wanted: Conversation) async throws -> Session {
            hasBegun = true
            _ = await warming?.result
            return try await find(wanted)
        }

        private func find(_ wanted: Conversation) async throws -> Session {
            let loaded = try await SharedEngines.all.engine(configuration)
            if engine != loaded.id {
                // Released and loaded again: the old sessions are closed.
                idle = []
                engine = loaded.id
            }
            let session: Session
            if let best = bestMatch(wanted) {
                session = idle.remove(at: best).session
            } else {
                let adapter = try await SharedEngines.all.adapter(configuration, in: loaded)
                session = try await loaded.engine.session(.init(
                    adapters: adapter.map { [$0.scaled(by: 1)] } ?? [],
                    instructions: wanted.instructions,
                    contextSize: configuration.contextSize
                ))
            }
            if session.transcript != wanted.past {
                if wanted.past.isEmpty {
                    try await session.reset()
                } else {
                    try await session.restore(wanted.past)
                }
            }
            return session
        }

        func give(back session: Session, _ instructions: String?) {
            idle.append(Idle(session: session, instructions: instructions))
            while idle.count > Self.kept {
                idle.removeFirst().session.close()
            }
        }

        /// Loads the model and computes a conversation ahead of its first request; pointless after it.
        func prewarm(_ past: Conversation) {
            guard !hasBegun, warming == nil else { return }
            warming = Task {
                let session = try await find(past)
                defer { give(back: session, past.instructions) }
                try await session.prewarm()
            }
        }

        /// The idle session that shares most with what is wanted; none while a fresh one may be made and nothing is shared.
        private func bestMatch(_ wanted: Conversation) -> Int? {
            let shared = idle.indices.filter { idle[$0].instructions == wanted.instructions }.map { index in
                (index, common: zip(idle[index].session.transcript, wanted.past).prefix { $0 == $1 }.count)
            }
            guard let best = shared.max(by: { $0.common < $1.common }) else { return nil }
            let begun = !idle[best.0].session.transcript.isEmpty
            return best.common == 0 && begun && idle.count < Self.kept ? nil : best.0
        }
    }
#endif
