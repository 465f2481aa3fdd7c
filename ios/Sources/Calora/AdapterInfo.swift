import Foundation
internal import CaloraBindings

/// What an adapter file says of itself.
public struct AdapterInfo: Sendable, Hashable {
    /// The task's name.
    public let name: String
    /// What it does, for people.
    public let summary: String?
    /// The task file or PEFT folder.
    public let url: URL
    /// The id of the base it was made for; absent in a PEFT folder, where shapes are checked only.
    public let baseID: String?
    /// Bytes of its branches in the file.
    public let byteCount: Int
    /// Modules that it touches.
    public let moduleCount: Int
    /// The largest rank beside one linear, its branches added up.
    public let rank: Int
    /// Whether it steers the model (LoRA).
    public let hasLoRA: Bool
    /// Whether it repairs compression (recovery), which ties it to one compressed model.
    public let hasRecovery: Bool
    /// What it tells the model before a conversation.
    public let instructions: String?
    /// Whether the file is encrypted.
    public let isEncrypted: Bool
    /// Whether it says what it does after a probe, so that it can be proven to act.
    public let hasCanary: Bool
    /// The public key that signed it, in hexadecimal digits; only where trusted signers were asked for.
    public let signer: String?

    /// Reads the header of a task file or PEFT folder. No engine is needed and no tensor is read.
    public static func read(from url: URL) async throws(EngineError) -> AdapterInfo {
        AdapterInfo(try engineErrors { try inspectAdapter(path: url.filePath) })
    }
}

extension AdapterInfo {
    init(_ info: CaloraBindings.AdapterInfo) {
        name = info.name
        summary = info.description
        url = URL(fileURLWithPath: info.path)
        baseID = info.baseId
        byteCount = Int(clamping: info.bytes)
        moduleCount = Int(info.modules)
        rank = Int(info.rank)
        hasLoRA = info.hasLora
        hasRecovery = info.hasRecovery
        instructions = info.instructions
        isEncrypted = info.encrypted
        hasCanary = info.hasCanary
        signer = info.signer
    }
}
