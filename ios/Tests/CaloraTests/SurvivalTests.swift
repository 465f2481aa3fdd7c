import Calora
import CaloraTestSupport
import Foundation
import Testing

@Suite struct SurvivalTests {
    private let story = "The old house stood at the end of the lane, and"
    private let options = GenerationOptions(maxTokens: 40, temperature: 0)

    @Test func aDeviceLostInTheBackgroundComesBack() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session(adapter: engine.adapters.open(Models.adapter("intent")))
        let whole = try await session.complete(story, options: options).text
        let events = engine.events
        var (text, chunks) = ("", 0)
        for try await chunk in session.streamCompletion(of: story, options: options) {
            text += chunk.text
            chunks += 1
            if chunks == 1 {
                try await engine.pause()
                try engine.simulateDeviceLoss()
                try engine.resume()
            }
        }
        #expect(text == whole)
        try engine.simulateDeviceLoss()
        #expect(try await engine.memory().weightBytes == 0)
        #expect(try await session.complete(story, options: options).text == whole)
        engine.close()
        var heard: [EngineEvent] = []
        for await event in events { heard.append(event) }
        try #require(heard.count == 4)
        for index in [0, 2] {
            #expect(heard[index] == .deviceLost(reason: "simulated"))
            guard case .deviceRebuilt(let device, let seconds) = heard[index + 1] else {
                Issue.record("\(heard[index + 1])")
                return
            }
            #expect(device == engine.deviceInfo.name)
            #expect(seconds > 0)
        }
    }

    @Test func eventsEndWithTheirReaderOrTheirEngine() async throws {
        let engine = try await Models.engine()
        let reading = Task { [events = engine.events] in for await _ in events {} }
        reading.cancel()
        await reading.value
        engine.close()
        for await event in engine.events { Issue.record("\(event)") }
        #expect(engine.deviceInfo.kind == .cpu)
        #expect(throws: EngineError.closed(what: "engine")) { try engine.simulateDeviceLoss() }
    }

    @Test func theCPUMayStandInForAGPU() async throws {
        let engine = try await Engine.load(.init(model: Models.base, device: .gpu, fallbackToCPU: true))
        let session = try await engine.session(adapter: engine.adapters.open(Models.adapter("spam")))
        let message = "CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize"
        #expect(try await session.respond(to: message, options: .init(maxTokens: 4)).text == "spam")
    }

    @Test func aFolderRemembersWhatTheGPUsDriverCanDo() async throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: folder) }
        let configuration = Engine.Configuration(
            model: Models.base, device: .gpu, deviceFolder: folder, fallbackToCPU: true)
        var kernels = 0
        for _ in 1...2 {
            let engine = try await Engine.load(configuration)
            guard engine.deviceInfo.kind == .gpu else {
                #expect(try await engine.deviceReport() == nil)
                continue
            }
            let report = try #require(try await engine.deviceReport())
            let facts = try #require(try JSONSerialization.jsonObject(with: Data(report.utf8)) as? [String: Any])
            #expect(facts["kept"] as? Int == kernels)
            #expect(facts["failed"] as? Int == 0, "\(report)")
            kernels = (facts["kernels"] as? [Any])?.count ?? 0
            #expect(kernels > 0)
            engine.close()
        }
        let engine = try await Models.engine()
        #expect(try await engine.deviceReport() == nil)
    }
}
