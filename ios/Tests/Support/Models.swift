import Calora
import Foundation

/// What ships with calora: a model and its adapters.
public enum Models {
    /// Of this repository; CALORA_REPOSITORY where the sources were moved after compiling.
    public static let repository: URL = {
        if let path = ProcessInfo.processInfo.environment["CALORA_REPOSITORY"] { return URL(fileURLWithPath: path) }
        return URL(fileURLWithPath: #filePath).appendingPathComponent("../../../..").standardizedFileURL
    }()

    public static let base = repository.appendingPathComponent("models/base")
    public static let adapters = repository.appendingPathComponent("models/adapters")

    public static func adapter(_ name: String) -> URL {
        adapters.appendingPathComponent(name)
    }

    /// The shipped model on the CPU, whose answers do not depend on the machine's GPU.
    public static func engine(_ progress: (@Sendable (LoadProgress) -> Void)? = nil) async throws -> Engine {
        try await Engine.load(.init(model: base, device: .cpu, threads: 2), progress: progress)
    }
}

/// A folder of its own for one test.
public final class TemporaryFolder: Sendable {
    public let url: URL

    public init() throws {
        url = FileManager.default.temporaryDirectory.appendingPathComponent("calora-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    }

    deinit {
        try? FileManager.default.removeItem(at: url)
    }

    public func write(_ data: Data, _ name: String) throws {
        try data.write(to: url.appendingPathComponent(name))
    }

    public func copy(_ file: URL) throws {
        try FileManager.default.copyItem(at: file, to: url.appendingPathComponent(file.lastPathComponent))
    }
}

/// Values that other threads append to.
public final class Collected<Value: Sendable>: @unchecked Sendable {
    private let lock = NSLock()
    private var values: [Value] = []

    public init() {}

    public func append(_ value: Value) {
        lock.withLock { values.append(value) }
    }

    public var all: [Value] {
        lock.withLock { values }
    }
}

/// Waits until a condition holds.
///
/// - Returns: Whether it came to hold within a minute: only a failure takes so long.
public func eventually(_ condition: () throws -> Bool) async throws -> Bool {
    for _ in 0..<6000 {
        if try condition() { return true }
        try await Task.sleep(for: .milliseconds(10))
    }
    return false
}
