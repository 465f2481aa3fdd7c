import Calora
import CaloraTestSupport
import Foundation
import MinimalSample
import Testing

@testable import AssistantSample

/// A router that is told.
struct FixedRouter: TaskRouter {
    let task: AssistantTask?
    func route(_ request: String) async throws -> TaskRoute { TaskRoute(task: task, confidence: task == nil ? 0.3 : 0.9) }
}

/// Routes by the first word of a request, which it should not have.
struct FirstWordRouter: TaskRouter {
    func route(_ request: String) async throws -> TaskRoute {
        TaskRoute(task: request.hasPrefix("wake") ? .intent : .spam, confidence: 1)
    }
}

@Suite struct AssistantTests {
    @Test func routesSwapsAndStreams() async throws {
        let engine = try await Models.engine()
        let assistant = try await Assistant(engine: engine, adapters: Models.adapters, router: FirstWordRouter())
        var state = AssistantState()

        try await ask(assistant, "wake me with some quiet piano music", &state)
        #expect(state.answer == "PlayMusic")
        #expect(state.route?.task == .intent)
        #expect(state.task == .intent)
        #expect(state.swap != nil)
        #expect(state.usage.map { $0.decodeTokensPerSecond > 0 } == true)
        #expect(!state.isBusy)

        try await ask(assistant, "did you feed the cat before you left?", &state)
        #expect(state.answer == "ham")
        #expect(state.task == .spam)
        #expect(state.usage?.cachedTokens == 0)

        // The task is attached already.
        try await ask(assistant, "Txt GAME to 80555 for the hottest ringtones, only 150p per week", &state)
        #expect(state.answer == "spam")
        #expect(state.swap == nil)
        #expect(state.task == .spam)
        // Every request stands for itself: the prompt is this one, with what opens two turns.
        let asked = try engine.countTokens("Txt GAME to 80555 for the hottest ringtones, only 150p per week")
        #expect(state.usage.map { $0.promptTokens <= asked + 4 } == true)

        let report = try await assistant.diagnostics(last: state.usage)
        #expect(report.contains("calora \(Engine.version)"))
        #expect(report.contains("bf16"))
        #expect(report.contains("task: spam"))
        #expect(report.contains("tok/s"))
        #expect(!report.contains("ringtones") && !report.contains("cat"))
    }

    /// The whole of it: the shipped router, the shipped tasks.
    @Test func theShippedAssistant() async throws {
        let assistant = try await Assistant(engine: try await Models.engine(), adapters: Models.adapters)
        var state = AssistantState()
        try await ask(assistant, "what will the weather be in Lisbon on Friday", &state)
        #expect((state.route?.task, state.answer) == (.intent, "GetWeather"))
        try await ask(assistant, "What is the longest, uh, I mean the widest river in France?", &state)
        #expect((state.route?.task, state.answer) == (.cleanQuestion, "What is the widest river in France?"))
        try await ask(assistant, "a warm , funny and deeply moving film", &state)
        #expect((state.route?.task, state.answer) == (.sentiment, "positive"))
    }

    @Test func anUnknownRequestIsNotAnswered() async throws {
        let engine = try await Models.engine()
        let assistant = try await Assistant(engine: engine, adapters: Models.adapters, router: FixedRouter(task: nil))
        var state = AssistantState()
        try await ask(assistant, "sing", &state)
        #expect(state.route == TaskRoute(task: nil, confidence: 0.3))
        #expect(state.answer.contains("don't know"))
        #expect(state.usage == nil)
        #expect(try engine.statistics().tokens == 0)
    }

    @Test func stoppingStopsTheEngine() async throws {
        let request = "How many people work in no sorry live in the capital of the country with the longest river?"
        let whole = try await tokens(request, stopping: false)
        #expect(try await tokens(request, stopping: true) < whole)
    }

    /// Tokens that a new engine computes for a request, of which the reader wants all or the first piece.
    private func tokens(_ request: String, stopping: Bool) async throws -> Int {
        let engine = try await Models.engine()
        let router = FixedRouter(task: .cleanQuestion)
        let assistant = try await Assistant(engine: engine, adapters: Models.adapters, router: router)
        let reading = Task {
            for try await event in assistant.events(for: request) {
                if stopping, case .text = event { withUnsafeCurrentTask { $0?.cancel() } }
            }
        }
        _ = await reading.result
        _ = try await engine.memory()
        let stands = try engine.statistics().tokens
        try await Task.sleep(for: .milliseconds(200))
        #expect(try engine.statistics().tokens == stands)
        return stands
    }

    @Test func problemsAreShownAndCancellationIsNone() {
        var state = AssistantState()
        state.begin()
        #expect(state.isBusy)
        state.end(EngineError.busy)
        #expect(state.problem == EngineError.busy.errorDescription)
        #expect(!state.isBusy)
        state.begin()
        #expect(state.problem == nil)
        state.end(CancellationError())
        #expect(state.problem == nil)
    }

    @Test func minimalRunsEveryTask() async throws {
        let shown = Collected<String>()
        try await minimal(
            model: Models.base, tasks: [Models.adapter("spam"), Models.adapter("intent")],
            prompt: "wake me with some quiet piano music"
        ) { shown.append($0) }
        #expect(shown.all.joined().hasSuffix("[intent] PlayMusic"))
        #expect(shown.all.joined().contains("[spam] ham"))
    }

    private func ask(_ assistant: Assistant, _ request: String, _ state: inout AssistantState) async throws {
        state.begin()
        for try await event in assistant.events(for: request) { state.apply(event) }
        state.end()
    }
}
