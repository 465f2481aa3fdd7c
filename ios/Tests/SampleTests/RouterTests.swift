import AssistantSample
import Calora
import CaloraTestSupport
import Foundation
import Testing

/// Knows requests by a word in them.
struct WordScorer: Scorer {
    let sure: Double

    func scores(_ request: String, labels: [String]) async throws -> [Choice] {
        labels.map { label in
            let share = request.contains(label) ? sure : (1 - sure) / Double(labels.count - 1)
            return Choice(text: label, logLikelihood: log(share), probability: share)
        }
    }
}

@Suite struct RouterTests {
    @Test func takesTheLikeliestLabel() async throws {
        let router = ClassifyingRouter(WordScorer(sure: 0.9))
        for task in AssistantTask.allCases {
            #expect(try await router.route("a \(task.label)") == Route(task: task, confidence: 0.9))
        }
    }

    @Test func saysSoWhenItDoesNotKnow() async throws {
        let doubtful = ClassifyingRouter(WordScorer(sure: 0.55), threshold: 0.6)
        #expect(try await doubtful.route("a question") == Route(task: nil, confidence: 0.55))
        let bold = ClassifyingRouter(WordScorer(sure: 0.55), threshold: 0.5)
        #expect(try await bold.route("a question").task == .cleanQuestion)
    }

    @Test func everyTaskHasALabelAndAnAdapter() {
        #expect(Set(AssistantTask.allCases.map(\.label)) == ["command", "message", "question", "review"])
        for task in AssistantTask.allCases {
            #expect(AssistantTask(label: task.label) == task)
            #expect(FileManager.default.fileExists(atPath: Models.adapter(task.adapterName).path))
        }
        #expect(AssistantTask(label: "poem") == nil)
    }

    /// The adapter that ships, on the requests it is there for.
    @Test func theShippedRouter() async throws {
        let engine = try await Models.engine()
        let adapter = try await engine.adapters.open(Models.adapter("router"))
        let router = ClassifyingRouter(SessionScorer(try await engine.session(adapter: adapter)))
        let rows: [(String, AssistantTask)] = [
            ("wake me with some quiet piano music", .intent),
            ("get us a table for five somewhere with good noodles", .intent),
            ("CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize", .spam),
            ("Running ten minutes late, order me a tea please", .spam),
            ("What is the longest, uh, I mean the widest river in France?", .cleanQuestion),
            ("How many people work in no sorry live in the capital?", .cleanQuestion),
            ("a warm , funny and deeply moving film", .sentiment),
            ("dull , predictable and far too long", .sentiment),
        ]
        for (request, task) in rows {
            let route = try await router.route(request)
            #expect(route.task == task, "\(request): \(route)")
        }
    }
}
