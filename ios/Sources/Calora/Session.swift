internal import CaloraBindings

/// A conversation: one KV cache, one transcript, one response at a time.
///
/// A request that is cancelled or fails leaves the session as it was before.
public final class Session: Sendable {
    let core: CaloraBindings.Session

    init(core: CaloraBindings.Session) {
        self.core = core
    }

    /// Answers the user's next message.
    ///
    /// - Throws: ``EngineError``, or `CancellationError` when the task is cancelled; decoding then stops within a token.
    public func respond(to prompt: String, options: GenerationOptions = .init()) async throws -> Response {
        try await streamResponse(to: prompt, options: options).collect()
    }

    /// Answers the user's next message piece by piece. Nothing is computed before the first piece is asked for.
    public func streamResponse(to prompt: String, options: GenerationOptions = .init()) -> ResponseStream {
        ResponseStream(session: self, request: .message(prompt), options: options)
    }

    /// Goes on with a text exactly as given: no chat template, no instructions, and the conversation starts anew.
    ///
    /// - Throws: ``EngineError``, or `CancellationError` when the task is cancelled.
    public func complete(_ text: String, options: GenerationOptions = .init()) async throws -> Response {
        try await streamCompletion(of: text, options: options).collect()
    }

    /// ``complete(_:options:)`` piece by piece.
    public func streamCompletion(of text: String, options: GenerationOptions = .init()) -> ResponseStream {
        ResponseStream(session: self, request: .text(text), options: options)
    }

    /// How likely each choice is as the answer to a prompt, in the order given. The conversation stays as it is.
    public func classify(_ prompt: String, choices: [String]) async throws(EngineError) -> [Choice] {
        try await engineErrors { try await core.classify(prompt: prompt, choices: choices).map(Choice.init) }
    }

    /// Computes the beginning of the next prompt ahead of time, so that its response starts sooner.
    public func prewarm(promptPrefix: String = "") async throws(EngineError) {
        try await engineErrors { try await core.prewarm(promptPrefix: promptPrefix) }
    }

    /// Goes on with another task, or without one. No base weight moves and the conversation stays.
    ///
    /// - Parameter cache: What of the conversation the next response computes anew; by default all of it.
    /// - Returns: What is kept and what that costs.
    @discardableResult
    public func switchTo(
        _ adapter: TaskAdapter?, cache: CachePolicy = .recompute
    ) async throws(EngineError) -> SwitchReport {
        try await switchTo(adapter.map { [$0.scaled(by: 1)] } ?? [], cache: cache)
    }

    /// Goes on with several adapters at once, whose ranks add up; an empty list detaches.
    @discardableResult
    public func switchTo(
        _ adapters: [ScaledAdapter], cache: CachePolicy = .recompute
    ) async throws(EngineError) -> SwitchReport {
        let report = try await engineErrors {
            try await core.switchTo(adapters: adapters.map(\.bindings), policy: cache.bindings)
        }
        return SwitchReport(report)
    }

    /// Forgets the conversation.
    public func reset() async throws(EngineError) {
        try await engineErrors { try await core.reset() }
    }

    /// Takes up a conversation that was held elsewhere; only for models with a chat template.
    public func restore(_ transcript: [Message]) async throws(EngineError) {
        try await engineErrors { try await core.restore(messages: transcript.map(\.bindings)) }
    }

    /// The conversation so far, as of the last response that ended by itself; instructions left out.
    public var transcript: [Message] {
        core.messages().map(Message.init)
    }

    /// Tokens of the conversation so far.
    public var tokenCount: Int {
        Int(core.tokenCount())
    }

    /// Tokens that the session holds.
    public var contextSize: Int {
        Int(core.contextSize())
    }

    /// Whether a response is in progress.
    public var isResponding: Bool {
        core.isResponding()
    }

    /// Ends a response in progress and frees the cache. Every later call throws ``EngineError/closed(what:)``; closing
    /// again does nothing. A session that is no longer referenced closes itself.
    public func close() {
        core.close()
    }
}
