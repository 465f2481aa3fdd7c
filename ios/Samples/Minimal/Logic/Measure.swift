import Calora
import Foundation

/// What `ios/bench.sh` asks for: this device's figures as one JSON object.
///
/// - Parameters:
///   - model: The model's folder.
///   - adapter: What is attached, and swapped in.
public func measure(model: URL, adapter: URL, options: BenchmarkOptions = .init()) async throws -> String {
    let engine = try await Engine.load(.init(model: model))
    defer { engine.close() }
    var options = options
    options.adapters = [adapter]
    return try await engine.benchmark(options)
}
