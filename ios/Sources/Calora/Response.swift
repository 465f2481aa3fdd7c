internal import CaloraBindings

/// A piece of a response.
public struct ResponseChunk: Sendable, Hashable {
    /// Text to append; whole characters, empty in the last chunk.
    public let text: String
    /// Why the response ended; in the last chunk only.
    public let finishReason: FinishReason?
    /// What the response cost; in the last chunk only.
    public let usage: Usage?

    init(_ chunk: CaloraBindings.ResponseChunk) {
        text = chunk.text
        finishReason = chunk.finishReason.map(FinishReason.init)
        usage = chunk.usage.map(Usage.init)
    }
}

/// A whole response.
public struct Response: Sendable, Hashable {
    /// The answer.
    public let text: String
    /// Why it ended.
    public let finishReason: FinishReason
    /// What it cost.
    public let usage: Usage
}

/// Why a response ended.
public enum FinishReason: Sendable, Hashable, CaseIterable {
    /// The model ended its turn.
    case endOfTurn
    /// One of ``GenerationOptions/stop`` appeared.
    case stopSequence
    /// ``GenerationOptions/maxTokens`` were generated.
    case maxTokens
    /// The context is full.
    case contextFull

    init(_ reason: CaloraBindings.FinishReason) {
        switch reason {
        case .endOfTurn: self = .endOfTurn
        case .stopSequence: self = .stopSequence
        case .maxTokens: self = .maxTokens
        case .contextFull: self = .contextFull
        }
    }
}
