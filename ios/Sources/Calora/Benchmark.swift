import Foundation
internal import CaloraBindings

/// What ``Engine/benchmark(_:)`` measures.
public struct BenchmarkOptions: Sendable, Hashable {
    /// Adapters to measure with: task files or PEFT folders.
    public var adapters: [URL]
    /// Tokens of the prompt.
    public var promptTokens: Int
    /// Tokens of the answer.
    public var outputTokens: Int
    /// Runs; medians are reported.
    public var runs: Int

    /// Options; all have a default.
    public init(adapters: [URL] = [], promptTokens: Int = 128, outputTokens: Int = 32, runs: Int = 5) {
        self.adapters = adapters
        self.promptTokens = promptTokens
        self.outputTokens = outputTokens
        self.runs = runs
    }

    fileprivate func bindings() throws(EngineError) -> CaloraBindings.BenchmarkOptions {
        CaloraBindings.BenchmarkOptions(
            adapters: adapters.map(\.filePath),
            promptTokens: try count(promptTokens, "prompt_tokens") ?? 0,
            outputTokens: try count(outputTokens, "output_tokens") ?? 0,
            runs: try count(runs, "runs") ?? 0
        )
    }
}

/// What ``Engine/benchmarkSwaps(_:)`` measures.
public struct SwapBenchmarkOptions: Sendable, Hashable {
    /// Task files or PEFT folders of this model, more than `resident`.
    public var folder: URL
    /// How many of them are resident at once.
    public var resident: Int
    /// Tokens of the conversation in which the task is swapped.
    public var promptTokens: Int
    /// Swaps for each cache policy.
    public var runs: Int

    /// Options; all but the folder have a default.
    public init(folder: URL, resident: Int = 16, promptTokens: Int = 128, runs: Int = 20) {
        self.folder = folder
        self.resident = resident
        self.promptTokens = promptTokens
        self.runs = runs
    }

    fileprivate func bindings() throws(EngineError) -> CaloraBindings.SwapBenchmarkOptions {
        CaloraBindings.SwapBenchmarkOptions(
            folder: folder.filePath,
            resident: try count(resident, "resident") ?? 0,
            promptTokens: try count(promptTokens, "prompt_tokens") ?? 0,
            runs: try count(runs, "runs") ?? 0
        )
    }
}

extension Engine {
    /// Measures what many tasks over one model cost: mapping them, swaps, and the first token after one for each
    /// ``CachePolicy``. One JSON object, the same as `calora bench --swap --json` prints.
    public func benchmarkSwaps(_ options: SwapBenchmarkOptions) async throws(EngineError) -> String {
        let options = try options.bindings()
        return try await engineErrors { try await core.benchmarkSwaps(options: options) }
    }

    /// Measures speed, memory and what swapping costs: one JSON object, the same as `calora bench --json` prints. Other
    /// requests of this engine wait meanwhile.
    public func benchmark(_ options: BenchmarkOptions = .init()) async throws(EngineError) -> String {
        let options = try options.bindings()
        return try await engineErrors { try await core.benchmark(options: options) }
    }
}
