#if canImport(SwiftUI)
    import SwiftUI

    /// The smallest app: a prompt, a button, what two tasks make of it. Put `base`, `spam` and `intent` into the app's
    /// Documents folder (Finder does, with UIFileSharingEnabled).
    @main
    struct MinimalApp: App {
        var body: some Scene {
            WindowGroup { MinimalView() }
        }
    }

    struct MinimalView: View {
        @State private var prompt = "wake me with some quiet piano music"
        @State private var answer = ""
        @State private var run: Task<Void, Never>?

        var body: some View {
            VStack(alignment: .leading, spacing: 16) {
                TextField("Prompt", text: $prompt, axis: .vertical).textFieldStyle(.roundedBorder)
                if run == nil {
                    Button("Run", action: start)
                } else {
                    Button("Stop") { run?.cancel() }
                }
                ScrollView { Text(answer).frame(maxWidth: .infinity, alignment: .leading) }
            }
            .padding()
            .task { await benchmarkIfAsked() }
        }

        /// Started by `ios/bench.sh`: prints the figures and ends.
        private func benchmarkIfAsked() async {
            guard CommandLine.arguments.contains("--benchmark") else { return }
            let folder = URL.documentsDirectory
            do {
                print(try await measure(model: folder.appending(path: "base"), adapter: folder.appending(path: "spam")))
                exit(0)
            } catch {
                print(error.localizedDescription)
                exit(1)
            }
        }

        private func start() {
            answer = ""
            let (prompt, folder) = (prompt, URL.documentsDirectory)
            let tasks = ["spam", "intent"].map { folder.appending(path: $0) }
            run = Task {
                do {
                    try await minimal(model: folder.appending(path: "base"), tasks: tasks, prompt: prompt) { text in
                        await show(text)
                    }
                } catch is CancellationError {
                } catch {
                    show("\n\(error.localizedDescription)")
                }
                run = nil
            }
        }

        @MainActor
        private func show(_ text: String) {
            answer += text
        }
    }
#endif
