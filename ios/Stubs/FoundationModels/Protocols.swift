public protocol LanguageModel: Sendable {
    associatedtype Executor: LanguageModelExecutor where Self == Executor.Model
    var capabilities: LanguageModelCapabilities { get }
    var executorConfiguration: Executor.Configuration { get }
}

// Apple's `respond` is `nonisolated(nonsending)`, which this compiler does not know yet.
public protocol LanguageModelExecutor: Sendable {
    associatedtype Configuration: Hashable, Sendable
    associatedtype Model: LanguageModel
    init(configuration: Configuration) throws
    func prewarm(model: Model, transcript: Transcript)
    func respond(
        to request: LanguageModelExecutorGenerationRequest,
        model: Model,
        streamingInto channel: LanguageModelExecutorGenerationChannel
    ) async throws
}

extension LanguageModelExecutor {
    public func prewarm(model: Model, transcript: Transcript) {}
}

public struct LanguageModelCapabilities: Sendable {
    public struct Capability: Sendable, Hashable {
        let name: String
        public static let guidedGeneration = Capability(name: "guidedGeneration")
        public static let toolCalling = Capability(name: "toolCalling")
        public static let reasoning = Capability(name: "reasoning")
        public static let vision = Capability(name: "vision")
    }

    let all: Set<Capability>

    public init(_ capabilities: [Capability]) {
        all = Set(capabilities)
    }

    public func contains(_ capability: Capability) -> Bool {
        all.contains(capability)
    }
}
