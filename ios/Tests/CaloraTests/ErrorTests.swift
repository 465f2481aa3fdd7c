import Calora
import CaloraTestSupport
import Foundation
import Testing

@Suite struct ErrorTests {
    @Test func missingFolder() async throws {
        let error = await loadError(URL(fileURLWithPath: "/nowhere/model"))
        guard case .fileNotFound(let path, let reason)? = error else { Issue.record("\(String(describing: error))"); return }
        #expect(path.contains("/nowhere/model"))
        #expect(!reason.isEmpty)
        #expect(error?.errorDescription?.contains("/nowhere/model") == true)
        #expect(error?.recoverySuggestion != nil)
    }

    @Test func truncatedWeights() async throws {
        let folder = try TemporaryFolder()
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            try folder.copy(Models.base.appendingPathComponent(name))
        }
        let whole = try Data(contentsOf: Models.base.appendingPathComponent("model.safetensors"))
        try folder.write(whole.prefix(whole.count / 2), "model.safetensors")
        let error = await loadError(folder.url)
        guard case .invalidFile(let path, _)? = error else { Issue.record("\(String(describing: error))"); return }
        #expect(path.hasSuffix("model.safetensors"))
    }

    @Test func anAdapterThatTouchesNothing() async throws {
        let engine = try await Models.engine()
        let folder = try TemporaryFolder()
        try folder.write(
            Data(#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "bias": "none"}"#.utf8),
            "adapter_config.json"
        )
        let module = "base_model.model.model.layers.99.self_attn.q_proj"
        try folder.write(Safetensors.file([
            ("\(module).lora_A.weight", [2, 256], Array(repeating: 0.1, count: 512)),
            ("\(module).lora_B.weight", [256, 2], Array(repeating: 0.1, count: 512)),
        ]), "adapter_model.safetensors")
        do {
            _ = try await engine.adapters.open(folder.url)
            Issue.record("it opened")
        } catch {
            guard case .adapterTouchesNothing(let adapter, let reason) = error else { Issue.record("\(error)"); return }
            #expect(!adapter.isEmpty)
            #expect(reason.contains("layers.99"))
        }
    }

    @Test func badOptions() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session()
        let rows: [(GenerationOptions, String)] = [
            (.init(temperature: -1), "temperature"),
            (.init(topP: 2), "top_p"),
            (.init(maxTokens: -5), "max_tokens"),
            (.init(topK: .max), "top_k"),
        ]
        for (options, name) in rows {
            do {
                _ = try await session.respond(to: "hello", options: options)
                Issue.record("\(name) was taken")
            } catch let error as EngineError {
                guard case .invalidOption(let option, let value, let reason) = error else { Issue.record("\(error)"); continue }
                #expect(option == name)
                #expect(!value.isEmpty && !reason.isEmpty)
            }
        }
        // None of it has touched the session.
        #expect(session.transcript.isEmpty)
        #expect(!session.isResponding)
        await #expect(throws: EngineError.self) { _ = try await engine.session(.init(contextSize: -1)) }
    }

    @Test func contextExceeded() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session(.init(contextSize: 32))
        #expect(session.contextSize == 32)
        let long = Array(repeating: "river", count: 200).joined(separator: " ")
        do {
            _ = try await session.respond(to: long)
            Issue.record("it fitted")
        } catch let error as EngineError {
            guard case .contextSizeExceeded(let size, let count) = error else { Issue.record("\(error)"); return }
            #expect(size == 32)
            #expect(count >= 200)
        }
        #expect(session.tokenCount == 0)
    }

    @Test func oneResponseAtATime() async throws {
        let engine = try await Models.engine()
        let session = try await engine.session()
        var iterator = session.streamCompletion(of: "The old house", options: .long).makeAsyncIterator()
        _ = try await iterator.next()
        #expect(session.isResponding)
        await #expect(throws: EngineError.busy) { _ = try await session.respond(to: "hello") }
        await #expect(throws: EngineError.busy) { try await session.switchTo(nil) }
        await #expect(throws: EngineError.busy) { _ = try await session.classify("x", choices: ["a", "b"]) }
        // The first is not disturbed.
        #expect(try await iterator.next() != nil)
    }

    private func loadError(_ model: URL) async -> EngineError? {
        do {
            _ = try await Engine.load(.init(model: model, device: .cpu))
            return nil
        } catch {
            return error as? EngineError
        }
    }
}
