import Foundation
internal import CaloraBindings

/// Opens task adapters for one engine's model, and decides which stay on the device.
public struct AdapterLibrary: Sendable {
    let core: CaloraBindings.Engine

    /// The adapters in a folder, by name: task files (`.safetensors`) and PEFT folders. Headers are read only.
    ///
    /// - Parameters:
    ///   - directory: The folder.
    ///   - rejected: Told of what looks like an adapter and cannot be read as one.
    public func scan(
        _ directory: URL,
        rejected: ((URL, EngineError) -> Void)? = nil
    ) async throws(EngineError) -> [AdapterInfo] {
        let files = FileManager.default
        let children: [URL]
        do {
            children = try files.contentsOfDirectory(at: directory, includingPropertiesForKeys: nil)
        } catch {
            throw .fileNotFound(path: directory.filePath, reason: error.localizedDescription)
        }
        var found: [AdapterInfo] = []
        for child in children {
            let configuration = child.appendingPathComponent("adapter_config.json")
            guard child.pathExtension == "safetensors" || files.fileExists(atPath: configuration.filePath) else { continue }
            do {
                found.append(try await AdapterInfo.read(from: child))
            } catch {
                rejected?(child, error)
            }
        }
        return found.sorted { $0.name < $1.name }
    }

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
