import Calora
import Foundation

/// One model, two tasks, one session: the whole of calora in a function.
///
/// - Parameters:
///   - model: The model's folder.
///   - tasks: Adapters of that model (task files or PEFT folders).
///   - prompt: What every task is given.
///   - show: Gets the text as it comes.
public func minimal(
    model: URL,
    tasks: [URL],
    prompt: String,
    show: @Sendable (String) async -> Void
) async throws {
    let engine = try await Engine.load(.init(model: model))
    defer { engine.close() }
    let session = try await engine.session()

    for url in tasks {
        let task = try await engine.adapters.open(url)
        try await session.switchTo(task)  // hot swap: no weight moves
        try await session.reset()  // and nothing of the last task's conversation
        await show("\n[\(task.info.name)] ")
        for try await chunk in session.streamResponse(to: prompt) {
            await show(chunk.text)
        }
    }
}
