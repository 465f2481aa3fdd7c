import Foundation
internal import CaloraBindings

/// What the loaded model is.
public struct ModelInfo: Sendable, Hashable {
    /// Its folder.
    public let folder: URL
    /// `model_type` of its configuration.
    public let architecture: String
    /// How the weights are stored, for people: `int4 g32`, `bf16`.
    public let scheme: String
    /// Layers.
    public let layers: Int
    /// Channels of the residual stream.
    public let hiddenSize: Int
    /// Tokens of the vocabulary.
    public let vocabularySize: Int
    /// Tokens that a session holds unless it asks for another number.
    public let contextSize: Int
    /// Tokens that the model was made for.
    public let maxContextSize: Int
    /// Whether prompts are messages of a conversation; else they are plain text to be continued.
    public let hasChatTemplate: Bool

    init(_ info: CaloraBindings.ModelInfo) {
        folder = URL(fileURLWithPath: info.folder, isDirectory: true)
        architecture = info.architecture
        scheme = info.scheme
        layers = Int(info.layers)
        hiddenSize = Int(info.hiddenSize)
        vocabularySize = Int(info.vocabularySize)
        contextSize = Int(info.contextSize)
        maxContextSize = Int(info.maxContextSize)
        hasChatTemplate = info.hasChatTemplate
    }
}
