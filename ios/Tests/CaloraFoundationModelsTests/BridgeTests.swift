import Calora
import CaloraTestSupport
import Foundation
import FoundationModels
import Testing

@testable import CaloraFoundationModels

/// Serialized: the engines that sessions share are the process's.
@Suite(.serialized) struct BridgeTests {
    private let question = "What is the longest, uh, I mean the widest river in France?"
    private let another = "Who wrote the song or rather who sang the song first?"

    private func model(_ adapter: String? = nil, contextSize: Int? = nil) -> TaskLanguageModel {
        TaskLanguageModel(
            model: Models.base, adapter: adapter.map(Models.adapter), contextSize: contextSize, device: .cpu
        )
    }

    /// What calora itself answers.
    private func expected(_ adapter: String?, _ prompts: [String], instructions: String? = nil) async throws -> [Response] {
        let engine = try await Models.engine()
        let task: TaskAdapter? = if let adapter { try await engine.adapters.open(Models.adapter(adapter)) } else { nil }
        let session = try await engine.session(adapter: task, instructions: instructions)
        var answers: [Response] = []
        for prompt in prompts { answers.append(try await session.respond(to: prompt)) }
        return answers
    }

    @Test func answersAsCaloraDoes() async throws {
        let own = try await expected("clean-question", [question])[0]
        let session = try LanguageModelSession(model: model("clean-question"))
        let answer = try await session.respond(to: question)
        #expect(answer.content == own.text)
        #expect(answer.deltas.count > 4)
        #expect(answer.usage?.input.totalTokenCount == own.usage.promptTokens)
        #expect(answer.usage?.input.cachedTokenCount == 0)
        #expect(answer.usage?.output.totalTokenCount == own.usage.outputTokens)
    }

    @Test func goesOnWithAConversationAndComputesOnlyTheRest() async throws {
        let own = try await expected("clean-question", [question, another], instructions: "Be brief.")
        let session = try LanguageModelSession(model: model("clean-question"), instructions: "Be brief.")
        _ = try await session.respond(to: question)
        let second = try await session.respond(to: another)
        #expect(second.content == own[1].text)
        #expect(second.usage?.input.totalTokenCount == own[1].usage.promptTokens)
        #expect(second.usage?.input.cachedTokenCount == own[1].usage.cachedTokens)
        #expect(own[1].usage.cachedTokens > own[0].usage.promptTokens)
    }

    /// A transcript from elsewhere (saved, edited) is restored; what its beginning shares with a session is kept.
    @Test func takesUpATranscript() async throws {
        let session = try LanguageModelSession(model: model("clean-question"))
        _ = try await session.respond(to: question)
        let expected = try await session.respond(to: another)

        let saved = Array(try #require(Optional(session.transcript)).prefix(2))
        let resumed = try LanguageModelSession(model: model("clean-question"), transcript: Transcript(entries: saved))
        let answer = try await resumed.respond(to: another)
        #expect(answer.content == expected.content)
        #expect(answer.usage?.input.totalTokenCount == expected.usage?.input.totalTokenCount)
    }

    @Test func oneExecutorKeepsSeveralConversationsApart() async throws {
        let executor = try TaskLanguageModelExecutor(configuration: model("clean-question").executorConfiguration)
        let own = try await expected("clean-question", [question, another])
        // The text alone might not tell: a small model may answer alike whatever was said before.
        struct Answer: Equatable {
            let text: String
            let promptTokens: Int?
        }
        func ask(_ entries: [Transcript.Entry]) async throws -> Answer {
            let channel = LanguageModelExecutorGenerationChannel()
            try await executor.respond(
                to: LanguageModelExecutorGenerationRequest(
                    id: UUID(), transcript: Transcript(entries: entries), enabledTools: [], generationOptions: .init(),
                    contextOptions: .init(), metadata: [:]
                ),
                model: model("clean-question"), streamingInto: channel
            )
            let sent = try await channel.sent()
            return Answer(text: sent.text, promptTokens: sent.usage?.input.totalTokenCount)
        }
        func user(_ text: String) -> Transcript.Entry { .prompt(.init(segments: [.text(.init(content: text))])) }
        func said(_ text: String) -> Transcript.Entry {
            .response(.init(assetIDs: [], segments: [.text(.init(content: text))]))
        }
        // One conversation, another from the start, the first one's next turn, and a third that forgets it.
        let answers = own.map { Answer(text: $0.text, promptTokens: $0.usage.promptTokens) }
        #expect(try await ask([user(question)]) == answers[0])
        let other = try await ask([user(another)])
        #expect(try await ask([user(question), said(own[0].text), user(another)]) == answers[1])
        #expect(try await ask([user(another)]) == other)
    }

    @Test func enginesAreSharedAndReleased() async throws {
        await TaskLanguageModel.releaseCachedEngines()
        let first = try LanguageModelSession(model: model("clean-question"))
        let second = try LanguageModelSession(model: model("intent"))
        async let a = first.respond(to: question)
        async let b = second.respond(to: "wake me with some quiet piano music")
        let answers = try await (a, b)
        #expect(answers.1.content == "PlayMusic")
        #expect(await SharedEngines.all.count == 1)

        await TaskLanguageModel.releaseCachedEngines()
        #expect(await SharedEngines.all.count == 0)
        // A session that goes on loads again.
        #expect(try await second.respond(to: "wake me with some quiet piano music").content == "PlayMusic")
        #expect(await SharedEngines.all.count == 1)
    }

    @Test func prewarmComputesTheInstructions() async throws {
        await TaskLanguageModel.releaseCachedEngines()
        let session = try LanguageModelSession(model: model(), instructions: "Answer in one short sentence, please.")
        session.prewarm()
        let configuration = model().executorConfiguration
        let engine = try await SharedEngines.all.engine(configuration).engine
        #expect(try await eventually { try engine.statistics().tokens > 5 })
        let answer = try await session.respond(to: "hello", options: .init(maximumResponseTokens: 2))
        #expect((answer.usage?.input.cachedTokenCount ?? 0) > 5)
    }

    @Test func optionsAreMapped() {
        typealias Apple = FoundationModels.GenerationOptions
        typealias Ours = Calora.GenerationOptions
        #expect(Ours(Apple()) == Ours())
        #expect(Ours(Apple(temperature: 0.5, maximumResponseTokens: 7)) == Ours(maxTokens: 7, temperature: 0.5))
        #expect(Ours(Apple(samplingMode: .greedy, temperature: 2)) == Ours(temperature: 0))
        #expect(Ours(Apple(samplingMode: .random(top: 40, seed: 3))) == Ours(temperature: 1, topK: 40, seed: 3))
        let nucleus = Apple(samplingMode: .random(probabilityThreshold: 0.9), temperature: 0.7)
        #expect(Ours(nucleus) == Ours(temperature: 0.7, topP: 0.9))
    }

    @Test func errorsAreMapped() async throws {
        let session = try LanguageModelSession(model: model(contextSize: 32))
        do {
            _ = try await session.respond(to: Array(repeating: "river", count: 100).joined(separator: " "))
            Issue.record("it fitted")
        } catch LanguageModelError.contextSizeExceeded(let error) {
            #expect(error.contextSize == 32)
            #expect(error.tokenCount >= 100)
        }
        // The session still answers.
        #expect(try await session.respond(to: "hello", options: .init(maximumResponseTokens: 2)).usage != nil)

        let missing = TaskLanguageModel(model: URL(fileURLWithPath: "/nowhere"), device: .cpu)
        await #expect(throws: EngineError.self) {
            _ = try await LanguageModelSession(model: missing).respond(to: "hello")
        }
    }

    @Test func whatCaloraCannotIsRefused() async throws {
        #expect(!model().capabilities.contains(.toolCalling))
        #expect(!model().capabilities.contains(.guidedGeneration))
        let executor = try TaskLanguageModelExecutor(configuration: model().executorConfiguration)
        let prompt = Transcript.Entry.prompt(.init(segments: [.text(.init(content: "hello"))]))
        let rows: [([Transcript.Entry], [Transcript.ToolDefinition], GenerationSchema?)] = [
            ([prompt], [.init(name: "search")], nil),
            ([prompt], [], GenerationSchema()),
            ([], [], nil),
            ([.toolOutput(.init(segments: [])), prompt], [], nil),
            ([.prompt(.init(segments: [.attachment(.init())]))], [], nil),
        ]
        for (entries, tools, schema) in rows {
            await #expect(throws: LanguageModelError.self) {
                try await executor.respond(
                    to: LanguageModelExecutorGenerationRequest(
                        id: UUID(), transcript: Transcript(entries: entries), enabledTools: tools, schema: schema,
                        generationOptions: .init(), contextOptions: .init(), metadata: [:]
                    ),
                    model: model(), streamingInto: LanguageModelExecutorGenerationChannel()
                )
            }
        }
    }

    @Test func cancellingStopsTheEngine() async throws {
        let session = try LanguageModelSession(model: model("novelist"))
        let engine = try await SharedEngines.all.engine(model().executorConfiguration).engine
        let before = try engine.statistics().tokens
        let asking = Task { try await session.respond(to: "Once", options: .init(samplingMode: .greedy)) }
        #expect(try await eventually { try engine.statistics().tokens > before + 3 })
        asking.cancel()
        await #expect(throws: CancellationError.self) { _ = try await asking.value }
        _ = try await engine.memory()
        let stands = try engine.statistics().tokens
        try await Task.sleep(for: .milliseconds(200))
        #expect(try engine.statistics().tokens == stands)
        #expect(session.transcript.isEmpty)
        #expect(try await session.respond(to: "Once", options: .init(maximumResponseTokens: 2)).usage != nil)
    }
}
