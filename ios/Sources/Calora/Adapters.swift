import Foundation
internal import CaloraBindings

/// Adapters of one engine, file by file: opened, made resident, and let go. A folder of them is an ``AdapterLibrary``.
public struct Adapters: Sendable {
    let core: CaloraBindings.Engine

    /// Maps a task file or PEFT folder and checks that it belongs to this model. Its tensors stay in the file.
    public func open(_ url: URL) async throws(EngineError) -> TaskAdapter {
        TaskAdapter(core: try await engineErrors { try await core.openAdapter(path: url.filePath) })
    }

    /// Makes an adapter resident and keeps it so, whatever the budget: switching to it then moves no bytes.
    public func preload(_ adapter: TaskAdapter) async throws(EngineError) {
        try await engineErrors { try await core.preload(adapter: adapter.core) }
    }

    /// Lets go of a resident adapter; it stays where a session uses it.
    public func evict(_ adapter: TaskAdapter) async throws(EngineError) {
        try await engineErrors { try await core.evict(adapter: adapter.core) }
    }
}
