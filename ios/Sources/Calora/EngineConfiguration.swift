import Foundation
internal import CaloraBindings

extension Engine {
    /// How an engine is loaded; everything but the model has a default.
    public struct Configuration: Sendable, Hashable {
        /// The model's folder: `config.json`, `model.safetensors`, `tokenizer.json`.
        public var model: URL
        /// Which device computes.
        public var device: DeviceChoice
        /// Precision of the activations that meet compressed weights.
        public var activations: Activations
        /// Tokens that a session holds; by default the model's own number, at most 4,096.
        public var contextSize: Int?
        /// Threads of the CPU device; by default one a core.
        public var threads: Int?
        /// Bytes of adapters that stay resident after their last use, by default 64 MiB. The least recently used go first.
        public var adapterBudgetBytes: Int?
        /// Bytes for beginnings of conversations that were computed before: instructions, and what ``CachePolicy/restore``
        /// puts aside. By default 32 MiB; 0 for none.
        public var prefixBudgetBytes: Int?
        /// A folder in which the beginnings that instructions make, and what routers measured of their examples, outlive the
        /// process, such as one in the app's caches; within the same budget. By default none.
        public var prefixFolder: URL?
        /// A folder in which facts of the GPU outlive the process, such as one in the app's caches: with it, each kernel is
        /// tried before its first use, what computes wrongly on this driver is not used, and compiled pipelines are kept
        /// where the driver hands them out. By default none.
        public var deviceFolder: URL?
        /// Whether the CPU computes where the GPU is refused or lost for good; by default only with ``DeviceChoice/auto``.
        public var fallbackToCPU: Bool?
        /// Whether base weights are computed on in their mapped files or copied first.
        public var weights: WeightAccess
        /// Bytes for everything that ``Engine/plan(for:)`` lists; by default what the system says is available. On iOS and its
        /// kin that is what the process may still allocate, asked when loading begins.
        public var memoryBudgetBytes: Int?
        /// What is done when that is not enough.
        public var memoryPolicy: MemoryPolicy
        /// Sessions that are going to be open at once, for the plan; by default 1.
        public var plannedSessions: Int?

        /// A configuration.
        public init(
            model: URL,
            device: DeviceChoice = .auto,
            activations: Activations = .auto,
            contextSize: Int? = nil,
            threads: Int? = nil,
            adapterBudgetBytes: Int? = nil,
            prefixBudgetBytes: Int? = nil,
            prefixFolder: URL? = nil,
            deviceFolder: URL? = nil,
            fallbackToCPU: Bool? = nil,
            weights: WeightAccess = .mapped,
            memoryBudgetBytes: Int? = nil,
            memoryPolicy: MemoryPolicy = .refuse,
            plannedSessions: Int? = nil
        ) {
            self.model = model
            self.device = device
            self.activations = activations
            self.contextSize = contextSize
            self.threads = threads
            self.adapterBudgetBytes = adapterBudgetBytes
            self.prefixBudgetBytes = prefixBudgetBytes
            self.prefixFolder = prefixFolder
            self.deviceFolder = deviceFolder
            self.fallbackToCPU = fallbackToCPU
            self.weights = weights
            self.memoryBudgetBytes = memoryBudgetBytes
            self.memoryPolicy = memoryPolicy
            self.plannedSessions = plannedSessions
        }
    }

    /// Which device computes.
    public enum DeviceChoice: Sendable, Hashable, CaseIterable {
        /// The GPU where there is a real one, else the CPU.
        case auto
        /// A GPU, even a software one.
        case gpu
        /// The CPU.
        case cpu
    }

    /// Where base weights are read from while the engine computes.
    public enum WeightAccess: Sendable, Hashable, CaseIterable {
        /// From the mapped files: nothing to load. Whoever truncates one in place meanwhile ends the process.
        case mapped
        /// From a private copy, made while the engine loads: safe whatever happens to the files, for their bytes of memory.
        case copied
    }

    /// Precision of the activations that meet compressed weights.
    public enum Activations: Sendable, Hashable, CaseIterable {
        /// Int8 where weights are compressed, else float32.
        case auto
        /// Float32: the reference mode.
        case float32
        /// Int8: the fast mode.
        case int8
    }
}

extension Engine.Configuration {
    func bindings() throws(EngineError) -> CaloraBindings.EngineConfig {
        CaloraBindings.EngineConfig(
            model: model.filePath,
            device: device.bindings,
            activations: activations.bindings,
            contextSize: try count(contextSize, "context_size"),
            threads: try count(threads, "threads"),
            adapterBudgetBytes: try budget(adapterBudgetBytes, "adapter_budget"),
            prefixBudgetBytes: try budget(prefixBudgetBytes, "prefix_budget"),
            prefixFolder: prefixFolder?.filePath,
            deviceFolder: deviceFolder?.filePath,
            fallbackToCpu: fallbackToCPU,
            weights: weights == .copied ? .copied : .mapped,
            memoryBudgetBytes: try budget(memoryBudgetBytes ?? available, "memory_budget"),
            memoryPolicy: memoryPolicy.bindings,
            plannedSessions: try count(plannedSessions, "sessions")
        )
    }

    /// What the system says of this process, where it does. Pages of mapped files do not count there, so it says nothing
    /// of a CPU that computes on them.
    private var available: Int? {
        #if os(iOS) || os(tvOS) || os(watchOS) || os(visionOS)
            let bytes = Engine.availableMemory
            return bytes > 0 && !(device == .cpu && weights == .mapped) ? bytes : nil
        #else
            return nil
        #endif
    }

    private func budget(_ bytes: Int?, _ option: String) throws(EngineError) -> UInt64? {
        guard let bytes else { return nil }
        guard let exact = UInt64(exactly: bytes) else {
            throw .invalidOption(option: option, value: String(bytes), reason: "give a number of bytes")
        }
        return exact
    }
}

extension Engine.DeviceChoice {
    fileprivate var bindings: CaloraBindings.DeviceChoice {
        switch self {
        case .auto: .auto
        case .gpu: .gpu
        case .cpu: .cpu
        }
    }
}

extension Engine.Activations {
    fileprivate var bindings: CaloraBindings.Activations {
        switch self {
        case .auto: .auto
        case .float32: .f32
        case .int8: .int8
        }
    }
}

extension URL {
    /// The path as the system takes it.
    var filePath: String {
        path(percentEncoded: false)
    }
}
