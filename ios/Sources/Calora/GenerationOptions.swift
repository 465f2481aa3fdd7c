internal import CaloraBindings

/// How a response is generated. What is `nil` follows the adapter, then the model, then the default stated.
public struct GenerationOptions: Sendable, Hashable {
    /// The most tokens that are generated; by default as many as the context holds.
    public var maxTokens: Int?
    /// Divides the logits; 0 is greedy, the default.
    public var temperature: Double?
    /// Only the k likeliest tokens; 0, the default, switches it off.
    public var topK: Int?
    /// Only the likeliest tokens that together reach this probability, above 0 and at most 1; by default 1.
    public var topP: Double?
    /// Only tokens at least this fraction as likely as the likeliest, from 0 to 1; by default 0.
    public var minP: Double?
    /// Above 1 makes tokens seen so far less likely; by default 1.
    public var repetitionPenalty: Double?
    /// Same seed, same model, same device: same text. By default a new one each time.
    public var seed: UInt64?
    /// Texts that end the response; they are not part of it.
    public var stop: [String]

    /// Options; all have a default.
    public init(
        maxTokens: Int? = nil,
        temperature: Double? = nil,
        topK: Int? = nil,
        topP: Double? = nil,
        minP: Double? = nil,
        repetitionPenalty: Double? = nil,
        seed: UInt64? = nil,
        stop: [String] = []
    ) {
        self.maxTokens = maxTokens
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.minP = minP
        self.repetitionPenalty = repetitionPenalty
        self.seed = seed
        self.stop = stop
    }

    func bindings() throws(EngineError) -> CaloraBindings.GenerationOptions {
        CaloraBindings.GenerationOptions(
            maxTokens: try count(maxTokens, "max_tokens"),
            temperature: temperature.map { Float($0) },
            topK: try count(topK, "top_k"),
            topP: topP.map { Float($0) },
            minP: minP.map { Float($0) },
            repetitionPenalty: repetitionPenalty.map { Float($0) },
            seed: seed,
            stop: stop
        )
    }
}
