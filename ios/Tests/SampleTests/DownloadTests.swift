import CaloraTestSupport
import Foundation
import Testing

@testable import AssistantSample

/// A server with one file, which may hang up after some bytes.
private final class Server: Transport, @unchecked Sendable {
    private let content: Data
    private let resumes: Bool
    private let lock = NSLock()
    private var patience: Int
    private var asked: [Int] = []

    init(_ content: Data, resumes: Bool = true, patience: Int = .max) {
        (self.content, self.resumes, self.patience) = (content, resumes, patience)
    }

    var offsets: [Int] { lock.withLock { asked } }

    func becomePatient() { lock.withLock { patience = .max } }

    func fetch(_ url: URL, from offset: Int) async throws -> (start: Int, bytes: AsyncThrowingStream<Data, any Error>) {
        let start = resumes ? offset : 0
        let limit = lock.withLock {
            asked.append(offset)
            return patience
        }
        let rest = content.dropFirst(start).prefix(limit)
        return (start, AsyncThrowingStream { continuation in
            for begin in stride(from: rest.startIndex, to: rest.endIndex, by: 100) {
                continuation.yield(rest[begin..<min(begin + 100, rest.endIndex)])
            }
            continuation.finish()
        })
    }
}

/// No checksum to trust; enough to tell one test's content from another's.
private struct Sum: Checksum {
    private var value: UInt64 = 14_695_981_039_346_656_037
    mutating func update(_ data: Data) { for byte in data { value = (value ^ UInt64(byte)) &* 1_099_511_628_211 } }
    mutating func finish() -> String { String(value, radix: 16) }
    static func of(_ data: Data) -> String {
        var sum = Sum()
        sum.update(data)
        return sum.finish()
    }
}

@Suite struct DownloadTests {
    private let content = Data((0..<1000).map { UInt8(truncatingIfNeeded: $0 &* 7) })
    private let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    private var destination: URL { folder.url.appendingPathComponent("models/base/model.safetensors") }

    private func download(_ server: Server, sum: String? = nil, size: Int = 1000) -> ModelDownload<Sum> {
        let url = URL(string: "https://models.invalid/model.safetensors")!
        return ModelDownload(
            RemoteFile(url: url, size: size, sha256: sum ?? Sum.of(content).uppercased()),
            to: destination, over: server, verifiedBy: Sum.self
        )
    }

    private func names() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: destination.deletingLastPathComponent().path)
    }

    @Test func fetchesAndVerifies() async throws {
        let server = Server(content)
        let progress = Collected<Double>()
        try await download(server).run { progress.append($0) }
        #expect(try Data(contentsOf: destination) == content)
        #expect(try names() == ["model.safetensors"])
        #expect(progress.all.last == 1)
        #expect(progress.all == progress.all.sorted())
        // What is there is not fetched again.
        try await download(server).run()
        #expect(server.offsets == [0])
    }

    @Test func resumesWhereItStopped() async throws {
        let server = Server(content, patience: 300)
        await #expect(throws: DownloadError.incomplete(received: 300, expected: 1000)) {
            try await download(server).run()
        }
        #expect(try names() == ["model.safetensors.part"])
        await #expect(throws: DownloadError.incomplete(received: 600, expected: 1000)) {
            try await download(server).run()
        }
        server.becomePatient()
        try await download(server).run()
        #expect(server.offsets == [0, 300, 600])
        #expect(try Data(contentsOf: destination) == content)
    }

    @Test func beginsAnewWhereTheServerDoesNotResume() async throws {
        let server = Server(content, resumes: false, patience: 300)
        await #expect(throws: DownloadError.self) { try await download(server).run() }
        server.becomePatient()
        try await download(server).run()
        #expect(server.offsets == [0, 300])
        #expect(try Data(contentsOf: destination) == content)
    }

    @Test func aWrongFileNeverAppears() async throws {
        let wrong = Data(repeating: 1, count: 1000)
        let server = Server(wrong)
        await #expect(throws: DownloadError.wrongChecksum(expected: "cafe", found: Sum.of(wrong))) {
            try await download(server, sum: "cafe").run()
        }
        #expect(try names().isEmpty)
        await #expect(throws: DownloadError.tooLong(expected: 900)) { try await download(server, size: 900).run() }
        #expect(try names().isEmpty)
    }

    @Test func aWholePartIsVerifiedWithoutTheServer() async throws {
        let server = Server(content)
        let job = download(server)
        try FileManager.default.createDirectory(at: destination.deletingLastPathComponent(), withIntermediateDirectories: true)
        try content.write(to: job.part)
        try await job.run()
        #expect(server.offsets.isEmpty)
        #expect(try Data(contentsOf: destination) == content)
    }
}
