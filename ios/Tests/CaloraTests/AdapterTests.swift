import Calora
import CaloraTestSupport
import Foundation
import Testing

@Suite struct AdapterTests {
    @Test func scanReadsHeaders() async throws {
        let engine = try await Models.engine()
        let entries = try await engine.adapterLibrary(Models.adapters).entries()
        let found = entries.compactMap(\.info)
        let names = found.map(\.name)
        #expect(names == names.sorted())
        #expect(Set(names).isSuperset(of: ["clean-question", "intent", "novelist", "playwright", "sentiment", "spam"]))
        let spam = try #require(found.first { $0.name == "spam" })
        #expect(spam.rank == 8)
        #expect(spam.moduleCount == 42)
        #expect(spam.hasLoRA && !spam.hasRecovery)
        #expect(spam.byteCount > 400_000)
        #expect(spam.baseID == nil)
        #expect(spam.url.lastPathComponent == "spam")
        #expect(try engine.statistics().tokens == 0)
        #expect(try await AdapterInfo.read(from: Models.adapter("spam")) == spam)
    }

    @Test func scanSaysWhatItRejects() async throws {
        let engine = try await Models.engine()
        let folder = try TemporaryFolder()
        try folder.copy(Models.adapter("spam"))
        try folder.write(Data("no tensors".utf8), "broken.safetensors")
        try folder.write(Data("not an adapter at all".utf8), "notes.txt")
        let entries = try await engine.adapterLibrary(folder.url).entries()
        #expect(entries.map(\.name) == ["broken", "spam"])
        #expect(entries.map { $0.problem == nil } == [false, true])
        await #expect(throws: EngineError.self) {
            _ = try await engine.adapterLibrary(folder.url.appendingPathComponent("nowhere"))
        }
    }

    @Test func preloadAndEvictMoveBytes() async throws {
        let engine = try await Models.engine()
        let spam = try await engine.adapters.open(Models.adapter("spam"))
        #expect(spam.coverage.contains("42"))
        #expect(try await engine.memory().adapterBytes == 0)
        try await engine.adapters.preload(spam)
        #expect(try await engine.memory().adapterBytes > 0)
        try await engine.adapters.evict(spam)
        #expect(try await engine.memory().adapterBytes == 0)
    }

    @Test func aClosedAdapterStaysWhereItIsUsed() async throws {
        let engine = try await Models.engine()
        let spam = try await engine.adapters.open(Models.adapter("spam"))
        let session = try await engine.session(adapter: spam)
        spam.close()
        spam.close()
        #expect(try await session.respond(to: "did you feed the cat before you left?").text == "ham")
        await #expect(throws: EngineError.closed(what: "adapter")) { try await session.switchTo(spam) }
        await #expect(throws: EngineError.closed(what: "adapter")) { _ = try await engine.session(adapter: spam) }
    }
}
