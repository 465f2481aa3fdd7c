import Calora
import CaloraTestSupport
import Foundation
import Testing

private let question = "What is the longest, uh, I mean the widest river in France?"

@Suite struct StreamTests {
    @Test func streamEqualsRespond() async throws {
        let engine = try await Models.engine()
        let task = try await engine.adapters.open(Models.adapter("clean-question"))
        let whole = try await engine.session(adapter: task).respond(to: question)

        let session = try await engine.session(adapter: task)
        var chunks: [ResponseChunk] = []
        for try await chunk in session.streamResponse(to: question) { chunks.append(chunk) }

        #expect(whole.text.contains("river in France"))
        #expect(chunks.map(\.text).joined() == whole.text)
        #expect(chunks.count > 4)
        let last = try #require(chunks.last)
        #expect(last.finishReason == .endOfTurn)
        #expect(last.finishReason == whole.finishReason)
        #expect(chunks.dropLast().allSatisfy { $0.finishReason == nil && $0.usage == nil })

        let usage = try #require(last.usage)
        #expect(usage.promptTokens == whole.usage.promptTokens)
        #expect(usage.outputTokens == whole.usage.outputTokens)
        #expect(usage.outputTokens > 4)
        #expect(usage.cachedTokens == 0)
        #expect(usage.timeToFirstToken > .zero)
        #expect(usage.decodeTokensPerSecond > 0)

        #expect(session.transcript == [
            Message(role: .user, content: question), Message(role: .assistant, content: whole.text),
        ])
        #expect(session.tokenCount > usage.promptTokens)
        #expect(!session.isResponding)
    }

    @Test func aStreamThatIsReadTwiceAsksTwice() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session()
        let stream = session.streamCompletion(of: "The old house", options: .init(maxTokens: 4, temperature: 0))
        let (first, second) = (try await stream.collect(), try await stream.collect())
        #expect(first.text == second.text)
        #expect(first.finishReason == .maxTokens)
        #expect(second.usage.cachedTokens > 0)
    }

    @Test func nothingIsComputedBeforeTheFirstPull() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session()
        let stream = session.streamResponse(to: question)
        var iterator = stream.makeAsyncIterator()
        try await Task.sleep(for: .milliseconds(50))
        #expect(try engine.statistics().tokens == 0)
        _ = try await iterator.next()
        #expect(try engine.statistics().tokens > 0)
    }

    @Test func theEngineRunsAFewPiecesAheadAndNoMore() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session(adapter: try await engine.adapters.open(Models.adapter("novelist")))
        var iterator = session.streamCompletion(of: "He had never seen the sea until", options: .long).makeAsyncIterator()
        for _ in 0..<3 { _ = try await iterator.next() }
        let stands = try await settled(engine)
        try await Task.sleep(for: .milliseconds(100))
        #expect(try engine.statistics().tokens == stands)
        // What was read, four pieces in the queue, and one that each piece may hold back for a character's other half.
        #expect(stands < 40)
        #expect(session.isResponding)
    }

    @Test func buffered() async throws {
        let engine = try await Models.engine()
        let task = try await engine.adapters.open(Models.adapter("clean-question"))
        let whole = try await engine.session(adapter: task).respond(to: question)
        var text = ""
        for try await chunk in try await engine.session(adapter: task).streamResponse(to: question).buffered() {
            text += chunk.text
        }
        #expect(text == whole.text)
    }
}

extension GenerationOptions {
    /// An answer that takes a while.
    static let long = GenerationOptions(maxTokens: 400, temperature: 0)
}

/// Tokens computed, once the engine's thread finds nothing to compute: it has answered several times and no pass ran
/// between two answers, however slow the machine is.
func settled(_ engine: Engine) async throws -> Int {
    var (last, still) = (-1, 0)
    while still < 5 {
        _ = try await engine.memory()
        let now = try engine.statistics().tokens
        still = now == last ? still + 1 : 0
        last = now
        try await Task.sleep(for: .milliseconds(10))
    }
    return last
}
