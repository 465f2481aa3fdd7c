import AssistantSample
import Calora
import CaloraTestSupport
import Foundation
import Testing

@Suite struct RouterTests {
    @Test func everyTaskHasARouteAndAnAdapter() throws {
        let routes = try Route.read(Models.adapter("router").appendingPathComponent("routes.json"))
        #expect(Set(routes.map(\.name)) == Set(AssistantTask.allCases.map(\.rawValue)))
        for task in AssistantTask.allCases {
            #expect(FileManager.default.fileExists(atPath: Models.adapter(task.adapterName).path))
        }
    }

    /// The adapter that ships, on the requests it is there for.
    @Test func theShippedRouter() async throws {
        let engine = try await Models.engine()
        let adapter = try await engine.adapters.open(Models.adapter("router"))
        let routes = try Route.read(Models.adapter("router").appendingPathComponent("routes.json"))
        let router = LibraryRouter(try await engine.router(routes, adapter: adapter))
        let rows: [(String, AssistantTask?)] = [
            ("wake me with some quiet piano music", .intent),
            ("get us a table for five somewhere with good noodles", .intent),
            ("CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize", .spam),
            ("Running ten minutes late, order me a tea please", .spam),
            ("What is the longest, uh, I mean the widest river in France?", .cleanQuestion),
            ("How many people work in no sorry live in the capital?", .cleanQuestion),
            ("a warm , funny and deeply moving film", .sentiment),
            ("dull , predictable and far too long", .sentiment),
            ("hm", nil),
        ]
        for (request, task) in rows {
            let route = try await router.route(request)
            #expect(route.task == task, "\(request): \(route)")
        }
    }
}
