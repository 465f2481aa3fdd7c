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
    /// How strongly each attached adapter acts in this response, in the order in which they are attached: 1 as trained, 0 as
    /// if it were not there. By default the scales that they are attached with. What the conversation holds was computed
    /// with other scales, so a change computes it anew.
    public var adapterScales: [Double]

    /// Options; all have a default.
    public init(
        maxTokens: Int? = nil,
        temperature: Double? = nil,
        topK: Int? = nil,
        topP: Double? = nil,
        minP: Double? = nil,
        repetitionPenalty: Double? = nil,
        seed: UInt64? = nil,
        stop: [String] = [],
        adapterScales: [Double] = []
    ) {
        self.maxTokens = maxTokens
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.minP = minP
        self.repetitionPenalty = repetitionPenalty
        self.seed = seed
        self.stop = stop
        self.adapterScales = adapterScales
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
            stop: stop,
            adapterScales: adapterScales.map { Float($0) }
        )
    }
}
