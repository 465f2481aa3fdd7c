import Foundation
internal import CaloraBindings

/// A task that requests may be for.
public struct Route: Sendable, Hashable {
    /// What the app calls it: an adapter's name, say.
    public var name: String
    /// What the model answers to such a request: the label that an adapter was trained to give, or a description.
    public var answer: String
    /// Requests of this kind. They tell a router what is like nothing it knows; a pass each when it is made.
    public var examples: [String]

    /// A task.
    public init(name: String, answer: String, examples: [String] = []) {
        self.name = name
        self.answer = answer
        self.examples = examples
    }

    /// Reads routes from a JSON file: a list of `{"name", "answer", "examples"}`.
    public static func read(_ file: URL) throws(EngineError) -> [Route] {
        try engineErrors { try readRoutes(path: file.filePath) }.map {
            Route(name: $0.name, answer: $0.answer, examples: $0.examples)
        }
    }

    var bindings: CaloraBindings.Route {
        .init(name: name, answer: answer, examples: examples)
    }
}

/// When a ``Router`` admits that it does not know, and how it asks.
public struct RouterOptions: Sendable, Hashable {
    /// The least probability of the likeliest route, from 0 to 1.
    public var confidence: Double
    /// The least nearness to an example, from -1 to 1; nil for what the examples themselves tell.
    public var familiarity: Double?
    /// The user's message, in which `{request}` stands for the request; nil for the usual one.
    public var prompt: String?

    /// What is left out is as usual.
    public init(confidence: Double = 0.6, familiarity: Double? = nil, prompt: String? = nil) {
        self.confidence = confidence
        self.familiarity = familiarity
        self.prompt = prompt
    }
}

/// A route and how likely it is.
public struct RankedRoute: Sendable, Hashable {
    /// The route's name.
    public let name: String
    /// From 0 to 1; those of all routes add up to 1.
    public let probability: Double
}

/// Why a ``Router`` does not know.
public enum Doubt: Sendable, Hashable {
    /// There is no request.
    case empty
    /// No route is likely enough.
    case unsure
    /// The request is like none of the examples, or says less than any of them.
    case unfamiliar
}

/// What a ``Router`` says of a request.
public struct Routing: Sendable, Hashable {
    /// The route's name; nil: "I don't know".
    public let route: String?
    /// All routes, the likeliest first.
    public let ranking: [RankedRoute]
    /// How near the request comes to the nearest example, from -1 to 1; nil without examples.
    public let familiarity: Double?
    /// Why the likeliest route is not to be taken; nil where it is.
    public let doubt: Doubt?

    /// The probability of the likeliest route.
    public var confidence: Double {
        ranking.first?.probability ?? 0
    }

    init(_ routing: CaloraBindings.Routing) {
        route = routing.route
        ranking = routing.ranking.map { RankedRoute(name: $0.name, probability: $0.probability) }
        familiarity = routing.familiarity
        doubt =
            switch routing.doubt {
            case .empty: .empty
            case .unsure: .unsure
            case .unfamiliar: .unfamiliar
            case nil: nil
            }
    }
}

/// Picks the task for a request. An engine makes it, with a cache of its own: conversations are left alone.
public final class Router: Sendable {
    private let core: CaloraBindings.Router

    init(core: CaloraBindings.Router) {
        self.core = core
    }

    /// The familiarity below which it does not know; nil without examples.
    public var leastFamiliarity: Double? {
        core.leastFamiliarity()
    }

    /// Which task a request is for. An empty one is for none.
    public func route(_ request: String) async throws(EngineError) -> Routing {
        Routing(try await engineErrors { try await core.route(request: request) })
    }

    /// Frees its cache; every later call throws ``EngineError/closed(what:)``. Twice is fine.
    public func close() {
        core.close()
    }
}
