import Calora
import CaloraTestSupport
import Foundation
import Testing

@Suite struct RouterTests {
    private func routes() throws -> [Route] {
        try Route.read(Models.adapter("router").appendingPathComponent("routes.json"))
    }

    private func shipped(_ engine: Engine, _ options: RouterOptions = .init()) async throws -> Router {
        let adapter = try await engine.adapters.open(Models.adapter("router"))
        return try await engine.router(routes(), adapter: adapter, options: options)
    }

    @Test func aRequestFindsItsTaskAndWhatIsNoneDoesNot() async throws {
        let engine = try await Models.engine()
        let router = try await shipped(engine)
        for (request, name) in [
            ("what will the weather be in Lisbon on Friday", "intent"),
            ("What is the longest, uh, I mean the widest river in France?", "clean-question"),
        ] {
            let routing = try await router.route(request)
            #expect(routing.route == name)
            #expect(routing.ranking.first?.name == name)
            #expect(routing.doubt == nil)
            #expect(abs(routing.ranking.map(\.probability).reduce(0, +) - 1) < 1e-9)
        }
        let nothing = try await router.route("hm")
        #expect(nothing.route == nil)
        #expect(nothing.doubt == .unfamiliar)
        #expect(try await router.route(" ").doubt == .empty)
        router.close()
        router.close()
        await #expect(throws: EngineError.closed(what: "session")) { _ = try await router.route("play it") }
    }

    @Test func thresholdsAreTheApps() async throws {
        let engine = try await Models.engine()
        let request = "what will the weather be in Lisbon on Friday"
        let sure = try await shipped(engine, .init(confidence: 1)).route(request)
        #expect(sure.route == nil)
        #expect(sure.doubt == .unsure)
        let bold = try await shipped(engine, .init(confidence: 0, familiarity: -1)).route("hm")
        #expect(bold.route == bold.ranking.first?.name)
    }

    @Test func descriptionsNeedNoTraining() async throws {
        let engine = try await Models.engine()
        let router = try await engine.router([
            Route(name: "film", answer: "a review of a film"), Route(name: "note", answer: "a message to a friend"),
        ])
        #expect(router.leastFamiliarity == nil)
        let routing = try await router.route("a warm , funny and deeply moving film")
        #expect(Set(routing.ranking.map(\.name)) == ["film", "note"])
        #expect(routing.familiarity == nil)
    }

    @Test func whatCannotRouteIsRefused() async throws {
        let engine = try await Models.engine()
        await #expect(throws: EngineError.self) { _ = try await engine.router(Array(routes().prefix(1))) }
        #expect(throws: EngineError.self) {
            _ = try Route.read(Models.base.appendingPathComponent("config.json"))
        }
    }
}
