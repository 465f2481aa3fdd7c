internal import CaloraBindings

/// What a response cost.
public struct Usage: Sendable, Hashable {
    /// Tokens of the whole prompt, the conversation so far included.
    public let promptTokens: Int
    /// How many of them were computed already. After a swap of adapters the rest is what the swap cost.
    public let cachedTokens: Int
    /// How many of those other adapters had computed, as ``CachePolicy/keep`` allows; 0 else.
    public let inexactTokens: Int
    /// Tokens generated.
    public let outputTokens: Int
    /// From the first pull to the first token.
    public let timeToFirstToken: Duration
    /// Prompt tokens computed per second.
    public let prefillTokensPerSecond: Double
    /// Tokens generated per second after the first.
    public let decodeTokensPerSecond: Double

    init(_ usage: CaloraBindings.Usage) {
        promptTokens = Int(usage.promptTokens)
        cachedTokens = Int(usage.cachedTokens)
        inexactTokens = Int(usage.inexactTokens)
        outputTokens = Int(usage.outputTokens)
        timeToFirstToken = .seconds(usage.timeToFirstToken)
        prefillTokensPerSecond = usage.prefillTokensPerSecond
        decodeTokensPerSecond = usage.decodeTokensPerSecond
    }
}

/// What the engine has computed since it was loaded.
public struct Statistics: Sendable, Hashable {
    /// Passes of the device.
    public let passes: Int
    /// Tokens in them: of prompts, of answers, and of candidates that were scored.
    public let tokens: Int

    init(_ statistics: CaloraBindings.Statistics) {
        passes = Int(clamping: statistics.passes)
        tokens = Int(clamping: statistics.tokens)
    }
}
