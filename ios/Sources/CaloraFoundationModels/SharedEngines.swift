#if canImport(FoundationModels) && (compiler(>=6.4) || os(Linux))
    import Calora
    import Foundation

    /// One engine for each model folder in the process. Apple makes an executor for each session; weights must not be
    /// loaded for each.
    @available(iOS 27.0, macOS 27.0, *)
    actor SharedEngines {
        static let all = SharedEngines()

        final class Loaded: Sendable {
            let engine: Engine
            /// Tells one load of a model from the next.
            let id = UUID()

            init(_ engine: Engine) {
                self.engine = engine
            }
        }

        private struct Entry {
            let id: UUID
            let load: Task<Loaded, any Error>
            var adapters: [String: Task<TaskAdapter, any Error>] = [:]
        }

        private var entries: [String: Entry] = [:]

        /// Engines that are loaded or being loaded.
        var count: Int { entries.count }

        /// The engine of a model folder. Who comes while it is being loaded waits for the same load.
        func engine(_ configuration: TaskLanguageModelExecutor.Configuration) async throws -> Loaded {
            let key = Self.key(configuration.model)
            if let entry = entries[key] { return try await entry.load.value }
            // Not a child of the caller's task: others may wait for it when the caller is gone.
            let load = Task {
                Loaded(try await Engine.load(.init(model: configuration.model, device: configuration.device)))
            }
            let entry = Entry(id: UUID(), load: load)
            entries[key] = entry
            do {
                return try await load.value
            } catch {
                // The next to ask tries again.
                if entries[key]?.id == entry.id { entries[key] = nil }
                throw error
            }
        }

        /// The adapter of a configuration, opened once for each engine, so that it is resident once.
        func adapter(
            _ configuration: TaskLanguageModelExecutor.Configuration,
            in loaded: Loaded
        ) async throws -> TaskAdapter? {
            guard let url = configuration.adapter else { return nil }
            let (key, file) = (Self.key(configuration.model), Self.key(url))
            if let opened = entries[key]?.adapters[file] { return try await opened.value }
            let open = Task { try await loaded.engine.adapters.open(url) as TaskAdapter }
            entries[key]?.adapters[file] = open
            do {
                return try await open.value
            } catch {
                entries[key]?.adapters[file] = nil
                throw error
            }
        }

        func release() async {
            let old = entries.values
            entries = [:]
            for entry in old {
                try? await entry.load.value.engine.close()
            }
        }

        private static func key(_ url: URL) -> String {
            url.standardizedFileURL.resolvingSymlinksInPath().path
        }
    }
#endif
