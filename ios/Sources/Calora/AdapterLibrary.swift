import Foundation
internal import CaloraBindings

/// A folder of adapters for one engine: task files (`.safetensors`) and PEFT folders. ``Engine/adapterLibrary(_:)`` opens it.
///
/// Only headers are read, so hundreds of files cost next to nothing. A file that is replaced is a new generation:
/// ``open(_:)`` gives the new one, and a session that has the old one keeps it. Adapters are read with checks: whoever
/// truncates a file causes ``EngineError/fileChanged(path:)`` and nothing worse.
public final class AdapterLibrary: Sendable {
    private let core: CaloraBindings.AdapterLibrary

    init(core: CaloraBindings.AdapterLibrary) {
        self.core = core
    }

    /// All adapters by name, and what of them is in memory.
    public func entries() async throws(EngineError) -> [AdapterEntry] {
        try await engineErrors { try await core.entries().map(AdapterEntry.init) }
    }

    /// Looks at the folder again and tells what changed since the last time. A file that is as it was is not read.
    public func refresh() async throws(EngineError) -> [AdapterChange] {
        try await engineErrors { try await core.refresh().map(AdapterChange.init) }
    }

    /// What changes, found by ``refresh()`` every `interval` while somebody iterates.
    ///
    /// Asking the system about a few hundred files costs some milliseconds and works on every phone. Each change is told
    /// once: iterate in one place.
    public func changes(every interval: Duration) -> AsyncThrowingStream<AdapterChange, any Error> {
        AsyncThrowingStream { continuation in
            let watching = Task {
                do {
                    while !Task.isCancelled {
                        for change in try await self.refresh() { continuation.yield(change) }
                        try await Task.sleep(for: interval)
                    }
                    continuation.finish()
                } catch is CancellationError {
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in watching.cancel() }
        }
    }

    /// The adapter of this name as the folder last had it.
    public func open(_ name: String) async throws(EngineError) -> TaskAdapter {
        TaskAdapter(core: try await engineErrors { try await core.open(name: name) })
    }

    /// Makes adapters resident and keeps them so, whatever the budget, until they are evicted, trimmed or replaced.
    public func preload(_ names: [String]) async throws(EngineError) {
        try await engineErrors { try await core.preload(names: names) }
    }

    /// Lets go of a resident adapter; it stays where a session uses it.
    public func evict(_ name: String) async throws(EngineError) {
        try await engineErrors { try await core.evict(name: name) }
    }

    /// Asks the system to read an adapter's bytes soon; a hint that makes nothing resident.
    public func prefetch(_ name: String) async throws(EngineError) {
        try await engineErrors { try await core.prefetch(name: name) }
    }

    /// Puts a copy of a task file in an adapter's place, if that is still at the version that the caller knows.
    ///
    /// Whoever is killed meanwhile leaves the old file or the new one.
    ///
    /// - Parameters:
    ///   - name: The adapter.
    ///   - expected: The version that the caller knows; nil to add one that is not there.
    ///   - source: The task file.
    /// - Returns: The new version.
    /// - Throws: ``EngineError/versionConflict(adapter:expected:actual:)`` if somebody else was faster.
    @discardableResult
    public func replace(_ name: String, expected: String?, with source: URL) async throws(EngineError) -> String {
        try await engineErrors {
            try await core.replace(name: name, expected: expected, source: source.filePath)
        }
    }

    /// Removes an adapter from the folder, if it is still at the version that the caller knows.
    public func remove(_ name: String, expected: String) async throws(EngineError) {
        try await engineErrors { try await core.remove(name: name, expected: expected) }
    }
}

/// One adapter of an ``AdapterLibrary``, as it was when the library was asked.
public struct AdapterEntry: Sendable, Hashable {
    /// The file's name without `.safetensors`, or the PEFT folder's.
    public let name: String
    /// The task file or PEFT folder.
    public let url: URL
    /// Which state of its files this is; only equality means anything.
    public let version: String
    /// What it says of itself; absent where it could not be read.
    public let info: AdapterInfo?
    /// Bytes of its branches in the mapped file; they cost memory only while they are read.
    public let mappedBytes: UInt64
    /// Bytes of it that are on the device.
    public let residentBytes: UInt64
    /// Whether a session uses it.
    public let isInUse: Bool
    /// Whether it was preloaded, and stays whatever the budget.
    public let isPreloaded: Bool
    /// Why it cannot be used, for people; ``AdapterLibrary/open(_:)`` throws the error itself.
    public let problem: String?

    init(_ entry: CaloraBindings.AdapterEntry) {
        name = entry.name
        url = URL(fileURLWithPath: entry.path)
        version = entry.version
        info = entry.info.map(AdapterInfo.init)
        mappedBytes = entry.mappedBytes
        residentBytes = entry.residentBytes
        isInUse = entry.inUse
        isPreloaded = entry.preloaded
        problem = entry.problem
    }
}

/// What a look at a folder of adapters found.
public enum AdapterChange: Sendable, Hashable {
    /// A new adapter.
    case added(name: String, version: String)
    /// Another content under a known name. Sessions keep what they have.
    case replaced(name: String, version: String)
    /// It is gone from the folder. Sessions keep what they have.
    case removed(name: String)
    /// It is there and cannot be read; told once for each state of its files.
    case refused(name: String, problem: String)

    init(_ change: CaloraBindings.AdapterChange) {
        switch change {
        case .added(let name, let version): self = .added(name: name, version: version)
        case .replaced(let name, let version): self = .replaced(name: name, version: version)
        case .removed(let name): self = .removed(name: name)
        case .refused(let name, let problem): self = .refused(name: name, problem: problem)
        }
    }
}
