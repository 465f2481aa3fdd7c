import Foundation

/// As much of Apple's session as shows how an app meets a model. One executor a session, as Apple's documentation and
/// Google's bridge say; the transcript grows by the prompt and the response when a response has ended.
public final class LanguageModelSession: @unchecked Sendable {
    public struct Response<Content: Sendable>: Sendable {
        public let content: Content
        public let deltas: [String]
        public let usage: LanguageModelExecutorGenerationChannel.Usage?
    }

    public enum Error: Swift.Error {
        case concurrentRequests
        /// What an executor gets that sends nothing.
        case noResponse
    }

    private typealias Run = @Sendable (
        LanguageModelExecutorGenerationRequest, LanguageModelExecutorGenerationChannel
    ) async throws -> Void

    private let run: Run
    private let warm: @Sendable (Transcript) -> Void
    private let lock = NSLock()
    private var entries: [Transcript.Entry]
    private var responding = false

    public init<Model: LanguageModel>(model: Model, instructions: String? = nil, transcript: Transcript = .init()) throws {
        let executor = try Model.Executor(configuration: model.executorConfiguration)
        run = { try await executor.respond(to: $0, model: model, streamingInto: $1) }
        warm = { executor.prewarm(model: model, transcript: $0) }
        entries = Array(transcript)
        if let instructions {
            entries.insert(
                .instructions(.init(segments: [.text(.init(content: instructions))], toolDefinitions: [])), at: 0
            )
        }
    }

    public var transcript: Transcript {
        lock.withLock { Transcript(entries: entries) }
    }

    public func prewarm() {
        warm(transcript)
    }

    public func respond(to prompt: String, options: GenerationOptions = .init()) async throws -> Response<String> {
        let asked = Transcript.Entry.prompt(.init(segments: [.text(.init(content: prompt))]))
        let before = try lock.withLock {
            guard !responding else { throw Error.concurrentRequests }
            responding = true
            return entries
        }
        defer { lock.withLock { responding = false } }
        let channel = LanguageModelExecutorGenerationChannel()
        let request = LanguageModelExecutorGenerationRequest(
            id: UUID(), transcript: Transcript(entries: before + [asked]), enabledTools: [], generationOptions: options,
            contextOptions: .init(), metadata: [:]
        )
        async let ran: Void = {
            defer { channel.finish() }
            try await run(request, channel)
        }()
        var deltas: [String] = []
        var usage: LanguageModelExecutorGenerationChannel.Usage?
        for await event in channel {
            switch event.content {
            case .text(let text, _): deltas.append(text)
            case .usage(let now): usage = now
            }
        }
        try await ran
        guard !deltas.isEmpty else { throw Error.noResponse }
        let answer = Transcript.Entry.response(
            .init(assetIDs: [], segments: [.text(.init(content: deltas.joined()))])
        )
        lock.withLock { entries = before + [asked, answer] }
        return Response(content: deltas.joined(), deltas: deltas, usage: usage)
    }
}

extension LanguageModelExecutorGenerationChannel {
    /// For tests that call an executor themselves: what it has sent.
    public func sent() async throws -> (text: String, usage: Usage?) {
        finish()
        var (text, usage): (String, Usage?) = ("", nil)
        for await event in self {
            switch event.content {
            case .text(let delta, _): text += delta
            case .usage(let now): usage = now
            }
        }
        return (text, usage)
    }
}
