import Foundation
internal import CaloraBindings

/// Adapters of one engine, file by file: opened, made resident, and let go. A folder of them is an ``AdapterLibrary``.
public struct Adapters: Sendable {
    let core: CaloraBindings.Engine

    /// Maps a task file or PEFT folder and checks that it belongs to this model. Its tensors stay in the file; an encrypted
    /// one is decrypted into memory, which is overwritten once nobody uses it.
    public func open(_ url: URL, options: AdapterOpenOptions = .init()) async throws(EngineError) -> TaskAdapter {
        TaskAdapter(core: try await engineErrors {
            try await core.openAdapterWith(path: url.filePath, options: options.bindings)
        })
    }

    /// Encrypts a task file and writes the result to `destination`, which may be the same file. Nothing unencrypted is
    /// written. A PEFT folder is packed into a task file first.
    ///
    /// - Parameters:
    ///   - url: The task file.
    ///   - destination: The encrypted file.
    ///   - key: 32 random bytes that the app keeps, best in the Keychain.
    public static func encrypt(_ url: URL, to destination: URL, key: Data) throws(EngineError) {
        try engineErrors { try encryptAdapter(path: url.filePath, out: destination.filePath, key: key) }
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
