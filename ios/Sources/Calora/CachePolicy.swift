internal import CaloraBindings

/// What becomes of a conversation's keys and values when a session goes on with other adapters.
///
/// They were computed through the old adapters. Exact policies never show them to the new ones: the next response is what a
/// new session with this conversation would give.
public enum CachePolicy: Sendable, Hashable, CaseIterable {
    /// Computed anew with the next response. Exact; costs a prefill of the conversation.
    case recompute
    /// What the old adapters computed is put aside, and what the new ones had computed of this conversation before comes
    /// back. Exact; costs memory within ``Engine/Configuration/prefixBudgetBytes``.
    case restore
    /// The instructions keep their keys and values; the rest is computed anew. Approximate.
    case keepInstructions
    /// Everything stays and nothing is computed. Approximate; for adapters that differ little.
    case keep

    var bindings: CaloraBindings.CachePolicy {
        switch self {
        case .recompute: .recompute
        case .restore: .restore
        case .keepInstructions: .keepInstructions
        case .keep: .keep
        }
    }
}

/// What a switch keeps and what it costs.
public struct SwitchReport: Sendable, Hashable {
    /// Tokens of the conversation under the new adapters.
    public let transcriptTokens: Int
    /// How many of them need not be computed with the next response.
    public let cachedTokens: Int
    /// How many of those were computed through other adapters; 0 with an exact policy.
    public let inexactTokens: Int
    /// Bytes newly put aside for a way back; 0 where the budget has no room for them.
    public let putAsideBytes: UInt64

    /// Whether the next response is what a new session would give.
    public var isExact: Bool {
        inexactTokens == 0
    }

    init(_ report: CaloraBindings.SwitchReport) {
        transcriptTokens = Int(report.transcriptTokens)
        cachedTokens = Int(report.cachedTokens)
        inexactTokens = Int(report.inexactTokens)
        putAsideBytes = report.putAsideBytes
    }
}
