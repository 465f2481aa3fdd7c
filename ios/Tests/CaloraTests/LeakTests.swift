import Calora
import CaloraTestSupport
import Foundation
import Testing

#if os(Linux)
    @Suite struct LeakTests {
        /// A model's weights are 200 kB and its cache 64 kB; a thousand that stayed would be hundreds of megabytes.
        @Test func aThousandLoadsStreamsAndCancels() async throws {
            let folder = try TemporaryFolder()
            try TinyModel.write(to: folder)
            try await cycles(100, folder.url)
            let before = try residentKilobytes()
            try await cycles(1000, folder.url)
            let grown = try residentKilobytes() - before
            #expect(grown < 24 * 1024, "grown by \(grown) kB")
            print("1,000 cycles: resident memory grew by \(grown) kB")
            #expect(try threads() < 40, "engine threads do not end")
        }

        private func cycles(_ count: Int, _ model: URL) async throws {
            for cycle in 0..<count {
                let engine = try await Engine.load(.init(model: model, device: .cpu, threads: 1))
                let session = try await engine.session()
                var pieces = 0
                for try await chunk in session.streamCompletion(of: "abc", options: .init(maxTokens: 50, temperature: 1, seed: 1)) {
                    pieces += 1
                    if chunk.finishReason != nil || pieces == 2 { break }
                }
                #expect(pieces >= 1)
                // Half of them are closed, half are only let go of.
                if cycle % 2 == 0 { engine.close() }
            }
        }

        private func residentKilobytes() throws -> Int {
            try status("VmRSS")
        }

        private func threads() throws -> Int {
            try status("Threads")
        }

        private func status(_ name: String) throws -> Int {
            let text = try String(contentsOfFile: "/proc/self/status", encoding: .utf8)
            let line = text.split(separator: "\n").first { $0.hasPrefix(name + ":") }
            let number = line?.split(whereSeparator: { !$0.isNumber }).first.flatMap { Int($0) }
            return try #require(number)
        }
    }
#endif
