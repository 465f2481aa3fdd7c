import Calora
import CaloraTestSupport
import Foundation
import Testing

@Suite struct LoadTests {
    @Test func loadsWithProgress() async throws {
        let seen = Collected<LoadProgress>()
        let engine = try await Models.engine { seen.append($0) }
        let fractions = seen.all.map(\.fraction)
        #expect(fractions == fractions.sorted())
        #expect(fractions.last == 1)
        #expect(fractions.filter { $0 == 1 }.count == 1)
        let last = try #require(seen.all.last)
        #expect(last.loadedBytes == last.totalBytes)
        #expect(last.totalBytes > 10_000_000)

        #expect(engine.modelInfo.architecture == "llama")
        #expect(engine.modelInfo.layers == 6)
        #expect(engine.modelInfo.hiddenSize == 256)
        #expect(engine.modelInfo.vocabularySize == 4096)
        #expect(engine.modelInfo.contextSize == 512)
        #expect(engine.modelInfo.hasChatTemplate)
        #expect(engine.modelInfo.folder.lastPathComponent == "base")
        #expect(engine.deviceInfo.kind == .cpu)
        #expect(!engine.deviceInfo.name.isEmpty)
        // Norms are kept as float32 and not counted as loaded.
        let memory = try await engine.memory()
        #expect(memory.weightBytes >= last.totalBytes)
        #expect(memory.weightBytes < last.totalBytes + 100_000)
        #expect(Engine.version.split(separator: ".").count == 3)
    }

    @Test func cancellingALoadThrowsCancellationError() async throws {
        let loading = Task { try await Models.engine() }
        loading.cancel()
        await #expect(throws: CancellationError.self) { _ = try await loading.value }
    }

    @Test func cancellingFromProgressThrowsCancellationError() async throws {
        // The callback cancels the very task that loads, so the engine hears of it in the middle.
        let task = Collected<Task<Engine, any Error>>()
        let reached = Collected<LoadProgress>()
        let loading = Task {
            while task.all.isEmpty { await Task.yield() }
            return try await Models.engine { progress in
                reached.append(progress)
                task.all[0].cancel()
            }
        }
        task.append(loading)
        await #expect(throws: CancellationError.self) { _ = try await loading.value }
        // And loading stops there.
        #expect(reached.all.count == 1)
        #expect(reached.all.allSatisfy { $0.fraction < 1 })
    }

    @Test func availabilityNeedsNoLoad() async throws {
        guard case .available(let bytes, let device) = await Engine.availability(for: .init(model: Models.base, device: .cpu))
        else { Issue.record("not available"); return }
        #expect(bytes > 10_000_000)
        #expect(!device.isEmpty)

        let missing = await Engine.availability(for: .init(model: URL(fileURLWithPath: "/nowhere"), device: .cpu))
        guard case .unavailable(.modelMissing, let detail) = missing else { Issue.record("\(missing)"); return }
        #expect(detail.contains("/nowhere"))

        let odd = await Engine.availability(for: .init(model: Models.base, device: .cpu, contextSize: -1))
        guard case .unavailable(.invalidOption, _) = odd else { Issue.record("\(odd)"); return }
    }

    @Test func aModelThatDoesNotFitSaysWhatWould() async throws {
        let configuration = Engine.Configuration(model: Models.base, device: .cpu, contextSize: 256)
        let whole = try await Engine.plan(for: configuration)
        #expect(whole.fits && whole.fittingContextSize == nil && whole.leastBytes == nil)
        let parts = [whole.copyBytes, whole.cacheBytes, whole.adapterBytes, whole.prefixBytes, whole.scratchBytes]
        #expect(whole.totalBytes == parts.reduce(whole.weightBytes, +))

        var tight = configuration
        tight.memoryBudgetBytes = Int(whole.totalBytes) - 1
        do {
            _ = try await Engine.load(tight)
            Issue.record("it was loaded")
        } catch EngineError.doesNotFit(let plan, let reason) {
            #expect(plan.totalBytes == whole.totalBytes)
            #expect(plan.availableBytes == whole.totalBytes - 1)
            #expect(reason.contains(String(whole.totalBytes)))
            #expect(try await Engine.plan(for: tight) == plan)
            var smaller = tight
            smaller.contextSize = plan.fittingContextSize
            #expect(try await Engine.load(smaller).memoryPlan.fits)
        }
        guard case .unavailable(.notEnoughMemory, _) = await Engine.availability(for: tight)
        else { Issue.record("available"); return }

        tight.memoryPolicy = .shrink
        let engine = try await Engine.load(tight)
        #expect(engine.memoryPlan.totalBytes < whole.totalBytes)
        #expect(engine.modelInfo.contextSize == engine.memoryPlan.contextSize)
        let session = try await engine.session()
        #expect(try await session.complete("The old house", options: .init(maxTokens: 1)).usage.outputTokens == 1)
    }

    @Test func countsTokens() async throws {
        let engine = try await Models.engine()
        let one = try engine.countTokens("river")
        let many = try engine.countTokens("What is the widest river in France?")
        #expect(one >= 1)
        #expect(many > one)
        #expect(many < 20)
    }

    @Test func benchmarkIsJSON() async throws {
        let engine = try await Models.engine()
        let json = try await engine.benchmark(
            .init(adapters: [Models.adapter("spam")], promptTokens: 8, outputTokens: 4, runs: 1)
        )
        let object = try JSONSerialization.jsonObject(with: Data(json.utf8))
        let report = try #require(object as? [String: Any])
        #expect(report.count > 3)
        await #expect(throws: EngineError.self) { try await engine.benchmark(.init(runs: -1)) }
    }

    @Test func benchmarkOfSwapsIsJSON() async throws {
        let engine = try await Models.engine()
        let folder = Models.adapters
        let json = try await engine.benchmarkSwaps(.init(folder: folder, resident: 3, promptTokens: 16, runs: 1))
        let object = try JSONSerialization.jsonObject(with: Data(json.utf8))
        let report = try #require(object as? [String: Any])
        #expect(report["resident"] as? Int == 3)
        await #expect(throws: EngineError.self) { try await engine.benchmarkSwaps(.init(folder: folder, resident: 100)) }
    }
}
