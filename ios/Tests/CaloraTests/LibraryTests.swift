import Calora
import CaloraTestSupport
import Foundation
import Testing

@Suite struct LibraryTests {
    /// A PEFT folder of the library, whose files are replaced by renaming.
    private func put(_ adapter: String, in folder: TemporaryFolder) throws {
        let task = folder.url.appendingPathComponent("task")
        try FileManager.default.createDirectory(at: task, withIntermediateDirectories: true)
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let data = try Data(contentsOf: Models.adapter(adapter).appendingPathComponent(file))
            try data.write(to: task.appendingPathComponent(file), options: .atomic)
        }
    }

    @Test func aReplacedFileIsANewGenerationAndARunningSessionKeepsTheOldOne() async throws {
        let engine = try await Models.engine()
        let folder = try TemporaryFolder()
        try put("spam", in: folder)
        let library = try await engine.adapterLibrary(folder.url)
        let running = try await engine.session(adapter: try await library.open("task"))
        let message = "did you feed the cat before you left?"
        #expect(try await running.respond(to: message).text == "ham")
        let before = try #require(try await library.entries().first)
        #expect(before.isInUse && before.residentBytes > 0)

        try put("novelist", in: folder)
        var changes = library.changes(every: .milliseconds(1)).makeAsyncIterator()
        guard case .replaced("task", let version)? = try await changes.next() else {
            Issue.record("no replacement was told")
            return
        }
        #expect(version != before.version)
        #expect(try await library.entries().first?.residentBytes == 0)
        #expect(try await engine.residency().adapters.count == 1)
        try await running.reset()
        #expect(try await running.respond(to: message).text == "ham")
        try await library.preload(["task"])
        #expect(try await library.entries().first?.isPreloaded == true)
        try await library.evict("task")
    }

    @Test func replacingIsCompareAndSwap() async throws {
        let engine = try await Models.engine()
        let folder = try TemporaryFolder()
        try put("spam", in: folder)
        let library = try await engine.adapterLibrary(folder.url)
        let version = try #require(try await library.entries().first).version
        await #expect(throws: EngineError.versionConflict(adapter: "task", expected: "another", actual: version)) {
            try await library.remove("task", expected: "another")
        }
        try await library.remove("task", expected: version)
        #expect(try await library.entries().isEmpty)
    }

    @Test func aFileTruncatedInPlaceIsAnErrorAndNothingWorse() async throws {
        let engine = try await Models.engine()
        let folder = try TemporaryFolder()
        try put("spam", in: folder)
        let opened = try await engine.adapterLibrary(folder.url).open("task")
        let tensors = folder.url.appendingPathComponent("task/adapter_model.safetensors")
        let handle = try FileHandle(forWritingTo: tensors)
        try handle.truncate(atOffset: 100)
        try handle.close()
        await #expect(throws: EngineError.fileChanged(path: tensors.path(percentEncoded: false))) {
            _ = try await engine.session(adapter: opened)
        }
    }
}
