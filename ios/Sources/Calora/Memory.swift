internal import CaloraBindings

/// Bytes that the engine holds.
public struct MemoryUse: Sendable, Hashable {
    /// Base weights; on the CPU these are mapped pages, which the system may drop and read again.
    public let weightBytes: UInt64
    /// KV caches of all sessions.
    public let cacheBytes: UInt64
    /// Resident adapters.
    public let adapterBytes: UInt64
    /// Working memory.
    public let scratchBytes: UInt64
    /// Beginnings of conversations that were put aside, in ordinary memory.
    public let prefixBytes: UInt64
    /// Encrypted adapters that are open, decrypted.
    public let decryptedBytes: UInt64

    /// All of it.
    public var totalBytes: UInt64 {
        weightBytes + cacheBytes + adapterBytes + scratchBytes + prefixBytes + decryptedBytes
    }

    init(_ memory: CaloraBindings.MemoryUse) {
        weightBytes = memory.weightBytes
        cacheBytes = memory.cacheBytes
        adapterBytes = memory.adapterBytes
        scratchBytes = memory.scratchBytes
        prefixBytes = memory.prefixBytes
        decryptedBytes = memory.decryptedBytes
    }
}

/// Adapters that are on the device together.
public struct ResidentAdapters: Sendable, Hashable {
    /// Their names.
    public let names: [String]
    /// Bytes of their branches in their files, close to what they take on the device.
    public let bytes: UInt64
    /// Whether a session uses them, or they were preloaded; else the budget keeps them.
    public let isInUse: Bool
}

/// What of the adapters is on the device.
public struct Residency: Sendable, Hashable {
    /// Every list of adapters.
    public let adapters: [ResidentAdapters]
    /// Bytes that may stay after their last use.
    public let budgetBytes: UInt64
    /// Bytes that are kept within the budget, in use or not.
    public let usedBytes: UInt64

    init(_ residency: CaloraBindings.Residency) {
        adapters = residency.adapters.map { ResidentAdapters(names: $0.names, bytes: $0.bytes, isInUse: $0.inUse) }
        budgetBytes = residency.budgetBytes
        usedBytes = residency.usedBytes
    }
}

/// How urgently memory is wanted.
public enum MemoryPressure: Sendable, Hashable, CaseIterable {
    /// Adapters that no session uses go, and beginnings of conversations that were put aside.
    case moderate
    /// KV caches of sessions that are not responding go too, working memory, and the pages of mapped weights; the next
    /// response computes its conversation anew.
    case critical

    var bindings: CaloraBindings.MemoryPressure {
        switch self {
        case .moderate: .moderate
        case .critical: .critical
        }
    }
}

/// What trimming freed.
public struct TrimReport: Sendable, Hashable {
    /// Bytes freed: the sum of the next four.
    public let freedBytes: UInt64
    /// Of adapters.
    public let adapterBytes: UInt64
    /// Of beginnings of conversations.
    public let prefixBytes: UInt64
    /// Of KV caches.
    public let cacheBytes: UInt64
    /// Of working memory.
    public let scratchBytes: UInt64
    /// Bytes of mapped weights whose pages went back to the system, which may keep them for the next use.
    public let mappedBytes: UInt64
    /// Adapters that are no longer resident.
    public let evictedAdapters: Int
    /// Sessions whose cache was dropped.
    public let droppedCaches: Int

    init(_ report: CaloraBindings.TrimReport) {
        freedBytes = report.freedBytes
        adapterBytes = report.adapterBytes
        prefixBytes = report.prefixBytes
        cacheBytes = report.cacheBytes
        scratchBytes = report.scratchBytes
        mappedBytes = report.mappedBytes
        evictedAdapters = Int(report.evictedAdapters)
        droppedCaches = Int(report.droppedCaches)
    }
}
