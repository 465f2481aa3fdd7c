// Swift 6.4 is the compiler of the iOS 27 SDK, which has the provider protocols; on Linux a stub has them.
#if canImport(FoundationModels) && (compiler(>=6.4) || os(Linux))
    import Calora
    import Foundation
    import FoundationModels

    /// A calora model, with a task adapter or without, behind Apple's `LanguageModelSession`.
    ///
    /// ```swift
    /// let model = TaskLanguageModel(model: modelFolder, adapter: summarizeFolder)
    /// let session = LanguageModelSession(model: model)
    /// let answer = try await session.respond(to: "Long text")
    /// ```
    ///
    /// The value is light. Engines are shared by everything in the process that names the same model folder, whatever the
    /// adapter: a second task costs a KV cache and an adapter, not a second copy of the weights.
    ///
    /// Text in, text out: guided generation, tools, images and reasoning are not among the capabilities.
    ///
    /// > Note: Written from Apple's documentation of the iOS 27 SDK and compiled and tested against a stub of it, not yet
    /// > against the SDK.
    @available(iOS 27.0, macOS 27.0, *)
    public struct TaskLanguageModel: LanguageModel {
        /// What runs the model.
        public typealias Executor = TaskLanguageModelExecutor

        /// Which model, which adapter.
        public let executorConfiguration: TaskLanguageModelExecutor.Configuration

        /// Text only.
        public var capabilities: LanguageModelCapabilities {
            LanguageModelCapabilities([])
        }

        /// A model.
        ///
        /// - Parameters:
        ///   - model: The model's folder.
        ///   - adapter: The task file or PEFT folder.
        ///   - contextSize: Tokens that a conversation may have; by default the model's own number, at most 4,096.
        ///   - device: Which device computes. The first to use a model decides for the process.
        public init(
            model: URL,
            adapter: URL? = nil,
            contextSize: Int? = nil,
            device: Engine.DeviceChoice = .auto
        ) {
            executorConfiguration = .init(model: model, adapter: adapter, contextSize: contextSize, device: device)
        }

        /// Closes the engines that sessions share and frees their memory. Sessions that go on load them again.
        public static func releaseCachedEngines() async {
            await SharedEngines.all.release()
        }
    }
#endif
