import Calora
import CaloraTestSupport
import Foundation
import Testing

@Suite struct LifetimeTests {
    @Test func closingTwiceAndUseAfterClose() async throws {
        let engine = try await Models.engine()
        let spam = try await engine.adapters.open(Models.adapter("spam"))
        let (session, other) = (try await engine.session(), try await engine.session())
        session.close()
        session.close()
        await #expect(throws: EngineError.closed(what: "session")) { _ = try await session.respond(to: "hello") }
        await #expect(throws: EngineError.closed(what: "session")) { try await session.switchTo(spam) }
        await #expect(throws: EngineError.closed(what: "session")) { try await session.reset() }
        await #expect(throws: EngineError.closed(what: "session")) { try await session.prewarm() }
        _ = try await other.respond(to: "hello", options: .init(maxTokens: 1))

        engine.close()
        engine.close()
        await #expect(throws: EngineError.self) { _ = try await other.respond(to: "hello") }
        await #expect(throws: EngineError.closed(what: "engine")) { _ = try await engine.session() }
        await #expect(throws: EngineError.closed(what: "engine")) { _ = try await engine.adapters.open(Models.adapter("spam")) }
        await #expect(throws: EngineError.closed(what: "engine")) { try await engine.adapters.preload(spam) }
        await #expect(throws: EngineError.closed(what: "engine")) { _ = try await engine.trim(.critical) }
        await #expect(throws: EngineError.closed(what: "engine")) { try await engine.pause() }
        #expect(throws: EngineError.closed(what: "engine")) { _ = try engine.countTokens("hello") }
        #expect(throws: EngineError.closed(what: "engine")) { _ = try engine.statistics() }
        // Nothing to do, nothing to fail.
        for event in AppEvent.allCases { await engine.handle(event) }
    }

    @Test func closingEndsAResponse() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session()
        let reading = Task {
            for try await _ in session.streamCompletion(of: "The old house", options: .long) {}
        }
        #expect(try await eventually { try engine.statistics().passes > 2 })
        session.close()
        await #expect(throws: EngineError.closed(what: "session")) { try await reading.value }
    }

    @Test func sessionsOutliveTheReferenceToTheirEngine() async throws {
        // An engine that is no longer referenced closes itself; its sessions say so and do not crash.
        var engine: Engine? = try await Models.engine()
        let session = try #require(try await engine?.session())
        engine = nil
        await #expect(throws: EngineError.self) { _ = try await session.respond(to: "hello") }
    }

    @Test func pauseHoldsAndResumeGoesOn() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session()
        let options = GenerationOptions(maxTokens: 60, temperature: 0)
        let expected = try await session.complete("The old house", options: options)

        let asking = Task { try await engine.session().complete("The old house", options: options) }
        let before = try engine.statistics().tokens
        #expect(try await eventually { try engine.statistics().tokens > before + 5 })
        await engine.handle(.didEnterBackground)
        let stands = try engine.statistics().tokens
        try await Task.sleep(for: .milliseconds(200))
        #expect(try engine.statistics().tokens == stands)
        await engine.handle(.willEnterForeground)
        let answer = try await asking.value
        #expect(answer.text == expected.text)
        #expect(try engine.statistics().tokens > stands)
    }

    @Test func aPausedRequestCanBeCancelled() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session()
        try await engine.pause()
        let asking = Task { try await session.complete("The old house") }
        #expect(try await eventually { session.isResponding })
        asking.cancel()
        await #expect(throws: CancellationError.self) { _ = try await asking.value }
        try engine.resume()
        #expect(try await session.complete("The old house", options: .init(maxTokens: 1)).usage.outputTokens == 1)
    }

    @Test func trimFreesWhatCanBeComputedAnew() async throws {
        let engine = try await Models.engine()
        let spam = try await engine.adapters.open(Models.adapter("spam"))
        let intent = try await engine.adapters.open(Models.adapter("intent"))
        let session = try await engine.session(adapter: spam)
        let first = try await session.respond(to: "did you feed the cat before you left?")
        try await engine.adapters.preload(intent)
        let before = try await engine.memory()

        let moderate = try await engine.trim(.moderate)
        #expect(moderate.evictedAdapters >= 1)
        #expect(moderate.freedBytes > 0)
        #expect(moderate.freedBytes == moderate.adapterBytes + moderate.prefixBytes)
        #expect(moderate.droppedCaches == 0)
        let critical = try await engine.trim(.critical)
        #expect(critical.droppedCaches == 1)
        #expect(critical.cacheBytes == before.cacheBytes)
        #expect(critical.scratchBytes > 0)
        #expect(critical.mappedBytes > 10_000_000)
        let after = try await engine.memory()
        #expect(after.totalBytes == before.totalBytes - moderate.freedBytes - critical.freedBytes)
        #expect(after.cacheBytes < before.cacheBytes)

        // The conversation is still there and is computed anew.
        #expect(session.transcript.map(\.content).last == first.text)
        let second = try await session.respond(to: "Running ten minutes late, order me a tea please")
        #expect(second.usage.cachedTokens == 0)
        #expect(second.usage.promptTokens > first.usage.promptTokens)
    }

    @Test func theLogHasNoPrompt() async throws {
        struct Sink: LogSink {
            let lines: Collected<String>
            func log(level: LogLevel, category: String, line: String) { lines.append("\(level) \(category): \(line)") }
        }
        let lines = Collected<String>()
        Engine.setLogLevel(.debug)
        Engine.setLogSink(Sink(lines: lines))
        defer {
            Engine.setLogSink(nil)
            Engine.setLogLevel(.warning)
        }
        let engine = try await Models.engine()
        let session = try await engine.session()
        let answer = try await session.respond(to: "xylophone marmalade", options: .init(maxTokens: 8))
        _ = try await engine.trim(.critical)
        #expect(lines.all.contains { $0.contains("info") && $0.contains("trim") })
        #expect(!lines.all.contains { $0.contains("xylophone") || (answer.text.count > 3 && $0.contains(answer.text)) })

        Engine.setLogSink(nil)
        let heard = lines.all.count
        _ = try await engine.trim(.critical)
        #expect(lines.all.count == heard)
    }
}
