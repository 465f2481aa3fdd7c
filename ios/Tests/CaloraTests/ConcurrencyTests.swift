import Calora
import CaloraTestSupport
import Foundation
import Testing

@Suite struct ConcurrencyTests {
    /// Eight conversations under four adapters at once say what each says alone.
    @Test func eightSessionsAtOnce() async throws {
        let engine = try await Models.engine()
        let rows: [(adapter: String, prompt: String)] = [
            ("intent", "wake me with some quiet piano music"),
            ("spam", "Txt GAME to 80555 for the hottest ringtones, only 150p per week"),
            ("clean-question", "What is the longest, uh, I mean the widest river in France?"),
            ("sentiment", "a warm , funny and deeply moving film"),
            ("intent", "what will the weather be in Lisbon on Friday"),
            ("spam", "did you feed the cat before you left?"),
            ("clean-question", "How many people work in no sorry live in the capital?"),
            ("sentiment", "dull , predictable and far too long"),
        ]
        var adapters: [String: TaskAdapter] = [:]
        for name in Set(rows.map(\.adapter)) { adapters[name] = try await engine.adapters.open(Models.adapter(name)) }
        var alone: [String] = []
        for row in rows {
            alone.append(try await engine.session(adapter: adapters[row.adapter]).respond(to: row.prompt).text)
        }
        #expect(Set(alone).count >= 6)

        let opened = adapters
        let together = try await withThrowingTaskGroup(of: (Int, String).self) { group in
            for (index, row) in rows.enumerated() {
                group.addTask {
                    (index, try await engine.session(adapter: opened[row.adapter]).respond(to: row.prompt).text)
                }
            }
            return try await group.reduce(into: Array(repeating: "", count: rows.count)) { $0[$1.0] = $1.1 }
        }
        #expect(together == alone)
    }

    /// A background session answers what it answers alone, beside a conversation that does too.
    @Test func backgroundBesideForeground() async throws {
        let engine = try await Models.engine()
        let spam = try await engine.adapters.open(Models.adapter("spam"))
        let quiet = try await engine.session(.init(adapters: [spam.scaled(by: 1)], priority: .background))
        let texts = ["did you feed the cat before you left?", "You have WON a free holiday. Call 09061 555 0100"]
        @Sendable func triage() async throws -> [[Double]] {
            var all: [[Double]] = []
            for text in texts { all.append(try await quiet.classify(text, choices: ["ham", "spam"]).map(\.probability)) }
            return all
        }
        let prompt = "wake me with some quiet piano music"
        let alone = try await triage()
        #expect(alone[0][0] > 0.5 && alone[1][1] > 0.5)
        let answer = try await engine.session().respond(to: prompt).text
        async let again = triage()
        #expect(try await engine.session().respond(to: prompt).text == answer)
        #expect(try await again == alone)
    }
}
