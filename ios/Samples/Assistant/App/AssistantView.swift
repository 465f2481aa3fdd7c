#if canImport(SwiftUI)
    import SwiftUI

    /// Type a request, see it routed to a task, read the answer as it comes.
    struct AssistantView: View {
        @ObservedObject var screen: AssistantScreen
        @State private var request = ""

        var body: some View {
            VStack(alignment: .leading, spacing: 12) {
                if let problem = screen.problem ?? screen.state.problem {
                    Text(problem).foregroundStyle(.red)
                }
                if !screen.isReady { ProgressView(value: screen.loaded) }
                TextField("What can I do?", text: $request, axis: .vertical)
                    .textFieldStyle(.roundedBorder)
                    .onSubmit { screen.ask(request) }
                HStack {
                    if screen.state.isBusy {
                        Button("Stop", action: screen.stop)
                    } else {
                        Button("Ask") { screen.ask(request) }.disabled(!screen.isReady || request.isEmpty)
                    }
                    Spacer()
                    Button("Copy diagnostics", action: screen.copyDiagnostics).disabled(!screen.isReady)
                }
                if let route = screen.state.route {
                    Text("\(route.task?.rawValue ?? "no task"), \(Int(route.confidence * 100)) % sure")
                        .font(.caption).foregroundStyle(.secondary)
                }
                ScrollView {
                    Text(screen.state.answer).frame(maxWidth: .infinity, alignment: .leading).textSelection(.enabled)
                }
                Group {
                    if let usage = screen.state.usage { Text(summary(usage)) }
                    Text("memory \(screen.memory)")
                }
                .font(.caption.monospacedDigit()).foregroundStyle(.secondary)
            }
            .padding()
            .task { await screen.load() }
        }
    }
#endif
