import Calora
import Foundation

/// What "copy diagnostics" copies.
struct Diagnostics {
    let version: String
    let model: ModelInfo
    let device: DeviceInfo
    let memory: MemoryUse
    let task: AssistantTask?
    let usage: Usage?

    var text: String {
        var lines = [
            "calora \(version), \(ProcessInfo.processInfo.operatingSystemVersionString)",
            "model: \(model.architecture), \(model.scheme), \(model.layers) layers, context \(model.contextSize)",
            "device: \(device.name) (\(device.kind)), \(device.detail), activations \(device.activations)",
            "memory: weights \(megabytes(memory.weightBytes)), caches \(megabytes(memory.cacheBytes)), "
                + "adapters \(megabytes(memory.adapterBytes)), working \(megabytes(memory.scratchBytes))",
            "task: \(task?.rawValue ?? "none")",
        ]
        if let usage { lines.append("last: \(summary(usage))") }
        return lines.joined(separator: "\n")
    }
}

/// What a response cost, in a line.
public func summary(_ usage: Usage) -> String {
    let first = Double(usage.timeToFirstToken.components.attoseconds) / 1e18
        + Double(usage.timeToFirstToken.components.seconds)
    return "\(usage.promptTokens) tokens in (\(usage.cachedTokens) cached), \(usage.outputTokens) out, "
        + "first after \(rounded(first * 1000)) ms, \(rounded(usage.prefillTokensPerSecond)) tok/s in, "
        + "\(rounded(usage.decodeTokensPerSecond)) tok/s out"
}

/// Bytes for people.
public func megabytes(_ bytes: UInt64) -> String {
    "\(rounded(Double(bytes) / 1e6)) MB"
}

private func rounded(_ value: Double) -> String {
    String(format: "%.1f", value)
}
