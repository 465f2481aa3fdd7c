import Calora
import CaloraTestSupport
import Foundation
import Testing

private let opening = "He had never seen the sea until"

@Suite struct CancellationTests {
    /// Answers that would take hundreds of tokens are cancelled after a few, and the engine's own count of tokens says how
    /// many were still computed.
    @Test func cancellingTheTaskStopsDecoding() async throws {
        let engine = try await Models.engine()
        let adapter = try await engine.adapters.open(Models.adapter("novelist"))
        var late: [Int] = []
        for _ in 0..<9 {
            let session = try await engine.session(adapter: adapter)
            let before = try engine.statistics().tokens
            let pieces = Collected<String>()
            let reading = Task {
                for try await chunk in session.streamCompletion(of: opening, options: .long) {
                    pieces.append(chunk.text)
                }
            }
            #expect(try await eventually { pieces.all.count >= 3 })
            reading.cancel()
            let cancelled = try engine.statistics().tokens
            await #expect(throws: CancellationError.self) { try await reading.value }
            late.append(try await standsStill(engine) - cancelled)
            #expect(cancelled - before < 300)
            #expect(!session.isResponding)
        }
        // The token in progress. A reader that is not waiting when it is cancelled hears of it with its next pull; until
        // then the engine fills its queue of four.
        #expect(late.sorted()[4] <= 1, "\(late)")
        #expect(late.allSatisfy { $0 <= 5 }, "\(late)")
    }

    @Test func leavingTheLoopStopsDecoding() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session(adapter: try await engine.adapters.open(Models.adapter("novelist")))
        for try await chunk in session.streamCompletion(of: opening, options: .long) where !chunk.text.isEmpty { break }
        #expect(try await eventually { !session.isResponding })
        try await standsStill(engine)
        #expect(try engine.statistics().tokens < 40)
        // And the session is free.
        _ = try await session.complete(opening, options: .init(maxTokens: 1))
    }

    @Test func cancellingRespondThrowsCancellationError() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session()
        let asking = Task { try await session.complete(opening, options: .long) }
        #expect(try await eventually { try engine.statistics().passes > 2 })
        asking.cancel()
        await #expect(throws: CancellationError.self) { _ = try await asking.value }
        try await standsStill(engine)

        let late = Task {
            withUnsafeCurrentTask { $0?.cancel() }
            return try await session.complete(opening, options: .long)
        }
        await #expect(throws: CancellationError.self) { _ = try await late.value }
    }

    @Test func droppingABufferedStreamStopsDecoding() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session()
        let reading = Task {
            for try await _ in session.streamCompletion(of: opening, options: .long).buffered() {}
        }
        #expect(try await eventually { try engine.statistics().passes > 2 })
        reading.cancel()
        _ = await reading.result
        #expect(try await eventually { !session.isResponding })
        try await standsStill(engine)
        // Not because the answer had come to its end.
        #expect(try engine.statistics().tokens < 300)
    }

    /// Cancelling is a transaction: the conversation goes on as if the request had not been.
    @Test func theSessionIsAsBefore() async throws {
        let engine = try await Models.engine()
        let task = try await engine.adapters.open(Models.adapter("clean-question"))
        let (first, second) = ("Who wrote the song or rather who sang the song first?", "When did the queen no wait the king leave the city?")

        let undisturbed = try await engine.session(adapter: task)
        _ = try await undisturbed.respond(to: first)
        let expected = try await undisturbed.respond(to: second)

        let session = try await engine.session(adapter: task)
        _ = try await session.respond(to: first)
        let (transcript, tokens) = (session.transcript, session.tokenCount)
        for try await _ in session.streamResponse(to: "How many people live in, I mean work in the capital?") { break }
        #expect(try await eventually { !session.isResponding })
        #expect(session.transcript == transcript)
        #expect(session.tokenCount == tokens)
        #expect(transcript.count == 2)
        let answer = try await session.respond(to: second)
        #expect(answer.text == expected.text)
        #expect(answer.usage.promptTokens == expected.usage.promptTokens)
        #expect(answer.usage.cachedTokens > 0)
    }

    /// One pass may have been running when the cancellation came; after that, nothing.
    @discardableResult
    private func standsStill(_ engine: Engine) async throws -> Int {
        // `memory` waits its turn on the engine's thread: behind the pass in progress and the roll-back.
        _ = try await engine.memory()
        let stands = try engine.statistics().tokens
        try await Task.sleep(for: .milliseconds(100))
        #expect(try engine.statistics().tokens == stands)
        return stands
    }
}
