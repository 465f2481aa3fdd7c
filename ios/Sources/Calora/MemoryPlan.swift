internal import CaloraBindings

/// Bytes that an engine takes at most, known before anything is loaded: ``Engine/plan(for:)``.
public struct MemoryPlan: Sendable, Hashable {
    /// GPU or CPU.
    public let kind: DeviceInfo.Kind
    /// The device's name.
    public let device: String
    /// Tokens that a session holds.
    public let contextSize: Int
    /// Sessions planned for.
    public let sessions: Int
    /// Base weights on the device.
    public let weightBytes: UInt64
    /// Whether those are pages of mapped files, which the system may drop and read again.
    public let weightsAreMapped: Bool
    /// Files in private memory beside the device's weights: only ``Engine/WeightAccess/copied`` on a GPU.
    public let copyBytes: UInt64
    /// KV caches of all planned sessions.
    public let cacheBytes: UInt64
    /// Resident adapters: their budget.
    public let adapterBytes: UInt64
    /// Beginnings of conversations: their budget.
    public let prefixBytes: UInt64
    /// Working memory.
    public let scratchBytes: UInt64
    /// All of it.
    public let totalBytes: UInt64
    /// What it must fit in; nil where that is not known.
    public let availableBytes: UInt64?
    /// Whether it fits.
    public let fits: Bool
    /// Where it does not: the largest context with which everything else fits as asked for.
    public let fittingContextSize: Int?
    /// Where it does not: the smallest plan that ``MemoryPolicy/shrink`` settles for.
    public let leastBytes: UInt64?

    init(_ plan: CaloraBindings.MemoryPlan) {
        kind = DeviceInfo.Kind(plan.kind)
        device = plan.device
        contextSize = Int(plan.contextSize)
        sessions = Int(plan.sessions)
        weightBytes = plan.weightBytes
        weightsAreMapped = plan.weightsMapped
        copyBytes = plan.copyBytes
        cacheBytes = plan.cacheBytes
        adapterBytes = plan.adapterBytes
        prefixBytes = plan.prefixBytes
        scratchBytes = plan.scratchBytes
        totalBytes = plan.totalBytes
        availableBytes = plan.availableBytes
        fits = plan.fits
        fittingContextSize = plan.fittingContextSize.map { Int($0) }
        leastBytes = plan.leastBytes
    }
}

/// What is done when a model does not fit the memory that there is.
public enum MemoryPolicy: Sendable, Hashable, CaseIterable {
    /// Loading throws ``EngineError/doesNotFit(plan:reason:)`` with the numbers.
    case refuse
    /// A smaller context, down to 512 tokens; then a smaller budget for beginnings of conversations, down to none; then a
    /// smaller one for adapters, down to 4 MiB. ``Engine/memoryPlan`` says what it became.
    case shrink

    var bindings: CaloraBindings.MemoryPolicy {
        switch self {
        case .refuse: .refuse
        case .shrink: .shrink
        }
    }
}

extension Engine {
    /// What a model would take with this configuration, whether or not that fits. Headers are read and devices asked;
    /// nothing is loaded.
    public static func plan(for configuration: Configuration) async throws(EngineError) -> MemoryPlan {
        let config = try configuration.bindings()
        return MemoryPlan(try engineErrors { try CaloraBindings.memoryPlan(config: config) })
    }
}
