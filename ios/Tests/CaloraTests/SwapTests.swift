import Calora
import CaloraTestSupport
import Foundation
import Testing

private let command = "wake me with some quiet piano music"

@Suite struct SwapTests {
    @Test func swappingChangesTheAnswerAndBackRestoresIt() async throws {
        let engine = try await Models.engine()
        let intent = try await engine.adapters.open(Models.adapter("intent"))
        let clean = try await engine.adapters.open(Models.adapter("clean-question"))
        let fresh = try await engine.session(adapter: intent).respond(to: command)
        #expect(fresh.text == "PlayMusic")

        let session = try await engine.session(adapter: intent)
        let first = try await session.respond(to: command)
        try await session.reset()
        try await session.switchTo(clean)
        let other = try await session.respond(to: command)
        try await session.reset()
        try await session.switchTo(intent)
        let again = try await session.respond(to: command)

        #expect(first.text == fresh.text)
        #expect(other.text != fresh.text)
        #expect(again.text == fresh.text)
        // Another adapter's keys and values are never used.
        #expect(other.usage.cachedTokens == 0)
        #expect(again.usage.cachedTokens == 0)
    }

    @Test func aSwapKeepsTheConversationAndSaysWhatItCost() async throws {
        let engine = try await Models.engine()
        let intent = try await engine.adapters.open(Models.adapter("intent"))
        let clean = try await engine.adapters.open(Models.adapter("clean-question"))
        let session = try await engine.session(adapter: intent)
        let first = try await session.respond(to: command)
        try await session.switchTo(clean)
        #expect(session.transcript.map(\.content) == [command, first.text])
        let second = try await session.respond(to: command)
        #expect(second.usage.cachedTokens == 0)
        #expect(second.usage.promptTokens > 2 * first.usage.promptTokens)
        #expect(session.transcript.count == 4)
    }

    @Test func aPolicySaysWhatOfTheConversationIsKept() async throws {
        let engine = try await Models.engine()
        let intent = try await engine.adapters.open(Models.adapter("intent"))
        let clean = try await engine.adapters.open(Models.adapter("clean-question"))
        let session = try await engine.session(adapter: intent)
        _ = try await session.respond(to: Array(repeating: command, count: 4).joined(separator: " "))
        let away = try await session.switchTo(clean, cache: .restore)
        #expect(away.isExact && away.putAsideBytes > 0 && away.cachedTokens == 0)
        #expect(try await engine.memory().prefixBytes == away.putAsideBytes)
        let back = try await session.switchTo(intent, cache: .restore)
        #expect(back.isExact && back.cachedTokens > 16)
        let restored = try await session.respond(to: command).usage
        #expect(restored.cachedTokens >= back.cachedTokens && restored.inexactTokens == 0)

        let kept = try await session.switchTo(clean, cache: .keep)
        #expect(!kept.isExact && kept.cachedTokens > back.cachedTokens)
        #expect(try await session.respond(to: command).usage.inexactTokens == kept.inexactTokens)
        #expect(try await session.switchTo(clean).cachedTokens == 0)
        try await engine.trim(.moderate)
        #expect(try await engine.memory().prefixBytes == 0)
    }

    @Test func instructionsAreComputedOnceAlsoForTheNextEngine() async throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: folder) }
        let told = "Answer in one short sentence about rivers, and say nothing else, please."
        let options = GenerationOptions(maxTokens: 12, temperature: 0)
        var texts: [String] = []
        for round in 0..<2 {
            let engine = try await Engine.load(.init(model: Models.base, device: .cpu, prefixFolder: folder))
            let first = try await engine.session(instructions: told).respond(to: command, options: options)
            #expect((first.usage.cachedTokens > 16) == (round > 0))
            let second = try await engine.session(instructions: told).respond(to: command, options: options)
            #expect(second.usage.cachedTokens > 16)
            texts += [first.text, second.text]
        }
        #expect(Set(texts).count == 1)
    }

    @Test func detachedAndScaleZeroAreTheBase() async throws {
        let engine = try await Models.engine()
        let intent = try await engine.adapters.open(Models.adapter("intent"))
        let options = GenerationOptions(maxTokens: 12, temperature: 0)
        let base = try await engine.session().respond(to: command, options: options)

        let session = try await engine.session(adapter: intent)
        let task = try await session.respond(to: command, options: options)
        #expect(task.text != base.text)
        try await session.reset()
        try await session.switchTo(nil)
        #expect(try await session.respond(to: command, options: options).text == base.text)

        let silent = try await engine.session(.init(adapters: [intent.scaled(by: 0)]))
        #expect(try await silent.respond(to: command, options: options).text == base.text)
    }

    @Test func aRequestFadesAnAdapterInWithoutACopyOfIt() async throws {
        let engine = try await Models.engine()
        let intent = try await engine.adapters.open(Models.adapter("intent"))
        func options(_ scales: [Double]) -> GenerationOptions {
            GenerationOptions(maxTokens: 12, temperature: 0, adapterScales: scales)
        }
        let base = try await engine.session().respond(to: command, options: options([]))
        let session = try await engine.session(adapter: intent)
        let task = try await session.respond(to: command, options: options([]))
        let bytes = try await engine.memory().adapterBytes
        try await session.reset()
        #expect(try await session.respond(to: command, options: options([0])).text == base.text)
        for tenth in 1...9 {
            try await session.reset()
            _ = try await session.respond(to: command, options: options([Double(tenth) / 10]))
        }
        try await session.reset()
        #expect(try await session.respond(to: command, options: options([1])).text == task.text)
        #expect(try await engine.memory().adapterBytes == bytes)
        await #expect(throws: EngineError.self) {
            try await session.respond(to: command, options: options([1, 1]))
        }
    }

    @Test func instructionsReachTheModel() async throws {
        let engine = try await Models.engine()
        let options = GenerationOptions(maxTokens: 12, temperature: 0)
        let plain = try await engine.session().respond(to: command, options: options)
        let told = try await engine.session(instructions: "Say again: never").respond(to: command, options: options)
        #expect(told.usage.promptTokens > plain.usage.promptTokens)
    }

    @Test func classifies() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session(adapter: try await engine.adapters.open(Models.adapter("spam")))
        let spam = try await session.classify(
            "CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize",
            choices: ["ham", "spam"]
        )
        #expect(spam.map(\.text) == ["ham", "spam"])
        #expect(spam[1].probability > 0.9)
        #expect(abs(spam.map(\.probability).reduce(0, +) - 1) < 1e-9)
        #expect(spam.allSatisfy { $0.logLikelihood < 0 })
        let ham = try await session.classify("did you feed the cat before you left?", choices: ["ham", "spam"])
        #expect(ham[0].probability > 0.9)
        #expect(session.transcript.isEmpty)
        await #expect(throws: EngineError.self) { try await session.classify("x", choices: []) }
    }

    @Test func conversationsCanBeRestored() async throws {
        let engine = try await Models.engine()
        let clean = try await engine.adapters.open(Models.adapter("clean-question"))
        let held = try await engine.session(adapter: clean)
        _ = try await held.respond(to: "Who wrote the song or rather who sang the song first?")
        let question = "How many people work in no sorry live in the capital?"

        let session = try await engine.session(adapter: clean)
        try await session.restore(held.transcript)
        #expect(session.transcript == held.transcript)
        let (a, b) = (try await session.respond(to: question), try await held.respond(to: question))
        #expect(a.text == b.text)
        #expect(a.usage.promptTokens == b.usage.promptTokens)
    }

    @Test func prewarmedTokensAreNotComputedAgain() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session(instructions: "Answer in one short sentence about rivers, please.")
        try await session.prewarm()
        let warm = try engine.statistics().tokens
        #expect(warm > 5)
        let answer = try await session.respond(to: command, options: .init(maxTokens: 2))
        #expect(answer.usage.cachedTokens >= warm - 1)
    }
}
