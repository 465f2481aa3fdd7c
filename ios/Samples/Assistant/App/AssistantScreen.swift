#if canImport(SwiftUI)
    import Calora
    import SwiftUI

    /// Joins the assistant's events to what the screen shows.
    @MainActor
    final class AssistantScreen: ObservableObject {
        @Published private(set) var state = AssistantState()
        @Published private(set) var loaded = 0.0
        @Published private(set) var memory = ""
        @Published private(set) var problem: String?
        @Published private(set) var isReady = false

        private var assistant: Assistant?
        private var engine: Engine?
        private var request: Task<Void, Never>?
        #if canImport(UIKit)
            private var hooks: ApplicationHooks?
        #endif

        /// Loads what lies in the app's Documents folder: `base` and `adapters`.
        func load() async {
            guard engine == nil else { return }
            let folder = URL.documentsDirectory
            do {
                let engine = try await Engine.load(.init(model: folder.appending(path: "base"))) { progress in
                    Task { @MainActor in self.loaded = progress.fraction }
                }
                self.engine = engine
                #if canImport(UIKit)
                    hooks = ApplicationHooks(engine)
                #endif
                assistant = try await Assistant(engine: engine, adapters: folder.appending(path: "adapters"))
                isReady = true
                await showMemory()
            } catch {
                problem = error.localizedDescription
            }
        }

        func ask(_ text: String) {
            guard let assistant, !state.isBusy else { return }
            state.begin()
            request = Task {
                do {
                    for try await event in assistant.events(for: text) { state.apply(event) }
                    state.end(Task.isCancelled ? CancellationError() : nil)
                } catch {
                    state.end(error)
                }
                await showMemory()
            }
        }

        func stop() {
            request?.cancel()
        }

        func copyDiagnostics() {
            Task {
                guard let text = try? await assistant?.diagnostics(last: state.usage) else { return }
                #if canImport(UIKit)
                    UIPasteboard.general.string = text
                #elseif canImport(AppKit)
                    NSPasteboard.general.clearContents()
                    NSPasteboard.general.setString(text, forType: .string)
                #endif
            }
        }

        private func showMemory() async {
            guard let use = try? await engine?.memory() else { return }
            memory = megabytes(use.totalBytes)
        }
    }
#endif
