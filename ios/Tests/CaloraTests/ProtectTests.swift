import Calora
import CaloraTestSupport
import Foundation
import Testing

@Suite struct ProtectTests {
    private let plain = Models.repository.appendingPathComponent("tests/golden/protect/spam.safetensors")
    private let key = Data(repeating: 7, count: 32)
    private let message = "CONGRATULATIONS! You have WON a free holiday. Call 09061 555 0100 now to claim your prize"

    private func signer() throws -> Data {
        let url = Models.repository.appendingPathComponent("tests/golden/protect/signer.pub")
        let line = try String(contentsOf: url, encoding: .utf8).trimmingCharacters(in: .whitespacesAndNewlines)
        let digits = Array(try #require(line.split(separator: " ").last))
        return Data(stride(from: 0, to: digits.count, by: 2).compactMap { UInt8(String(digits[$0...$0 + 1]), radix: 16) })
    }

    private func refusal(_ engine: Engine, _ url: URL, _ options: AdapterOpenOptions) async throws -> EngineError {
        do throws(EngineError) {
            _ = try await engine.adapters.open(url, options: options)
        } catch {
            return error
        }
        throw EngineError.internal(reason: "it was opened")
    }

    @Test func anEncryptedAndSignedAdapterAnswersAsThePlainOne() async throws {
        let (engine, folder, signer) = (try await Models.engine(), try TemporaryFolder(), try signer())
        let sealed = folder.url.appendingPathComponent("spam.sealed")
        try Adapters.encrypt(plain, to: sealed, key: key)
        let options = AdapterOpenOptions(key: key, trustedSigners: [signer], checksCanary: true)
        let opened = try await engine.adapters.open(sealed, options: options)
        #expect(opened.info.isEncrypted && opened.info.hasCanary && opened.info.signer?.count == 64)
        #expect(try await engine.memory().decryptedBytes > 50_000)
        let reference = try await engine.adapters.open(plain)
        let expected = try await engine.session(adapter: reference).respond(to: message).text
        #expect(try await engine.session(adapter: opened).respond(to: message).text == expected)
    }

    @Test func noKeyAnotherKeyAndAnotherSignerAreRefused() async throws {
        let (engine, folder, signer) = (try await Models.engine(), try TemporaryFolder(), try signer())
        let sealed = folder.url.appendingPathComponent("spam.sealed")
        try Adapters.encrypt(plain, to: sealed, key: key)
        for options in [AdapterOpenOptions(), AdapterOpenOptions(key: Data(repeating: 8, count: 32))] {
            guard case .adapterLocked(let path, _) = try await refusal(engine, sealed, options) else { Issue.record(); return }
            #expect(path.hasSuffix("spam.sealed"))
        }
        for signers in [[], [Data(repeating: 9, count: 32)]] {
            let error = try await refusal(engine, sealed, AdapterOpenOptions(key: key, trustedSigners: signers))
            guard case .adapterUntrusted = error else { Issue.record("\(error)"); return }
        }
        let folderError = try await refusal(engine, Models.adapter("spam"), AdapterOpenOptions(trustedSigners: [signer]))
        guard case .adapterUntrusted = folderError else { Issue.record("\(folderError)"); return }
        #expect(!"\(AdapterOpenOptions(key: key))".contains("7"))
        var dumped = ""
        dump(AdapterOpenOptions(key: key), to: &dumped)
        #expect(!dumped.contains("32 bytes"))
        #expect(throws: EngineError.self) { try Adapters.encrypt(Models.adapter("spam"), to: sealed, key: key) }
    }

    @Test func anAdapterThatDoesSomethingElseIsUnproven() async throws {
        let (engine, folder) = (try await Models.engine(), try TemporaryFolder())
        var bytes = try Data(contentsOf: plain)
        let (from, to) = (Data(#"lora\":2.0"#.utf8), Data(#"lora\":4.0"#.utf8))
        while let place = bytes.range(of: from) { bytes.replaceSubrange(place, with: to) }
        try folder.write(bytes, "doubled.safetensors")
        let doubled = folder.url.appendingPathComponent("doubled.safetensors")
        _ = try await engine.adapters.open(doubled)
        let error = try await refusal(engine, doubled, AdapterOpenOptions(checksCanary: true))
        guard case .adapterUnproven(let adapter, _) = error else { Issue.record("\(error)"); return }
        #expect(adapter == "spam")
    }
}
