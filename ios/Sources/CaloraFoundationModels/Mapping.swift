#if canImport(FoundationModels) && (compiler(>=6.4) || os(Linux))
    import Calora
    import FoundationModels

    @available(iOS 27.0, macOS 27.0, *)
    extension Calora.GenerationOptions {
        /// Apple's options; what is not said follows the adapter and the model.
        init(_ options: FoundationModels.GenerationOptions) {
            self.init(maxTokens: options.maximumResponseTokens, temperature: options.temperature)
            guard let kind = options.samplingMode?.kind else { return }
            switch kind {
            case .greedy:
                temperature = 0
            case .randomTopK(let k, let seed):
                (topK, self.seed) = (k, seed)
                temperature = temperature ?? 1
            case .randomProbabilityThreshold(let threshold, let seed):
                (topP, self.seed) = (threshold, seed)
                temperature = temperature ?? 1
            @unknown default:
                break
            }
        }
    }

    /// The framework's error where it has one of the meaning; the session passes on every other as it is.
    @available(iOS 27.0, macOS 27.0, *)
    func languageModelError(_ error: EngineError) -> any Error {
        guard case .contextSizeExceeded(let contextSize, let tokenCount) = error else { return error }
        return LanguageModelError.contextSizeExceeded(.init(
            contextSize: contextSize, tokenCount: tokenCount, debugDescription: error.errorDescription ?? ""
        ))
    }

    @available(iOS 27.0, macOS 27.0, *)
    func unsupported(_ capability: LanguageModelCapabilities.Capability) -> LanguageModelError {
        .unsupportedCapability(.init(capability: capability, debugDescription: "calora generates text only"))
    }

    @available(iOS 27.0, macOS 27.0, *)
    func unsupported(_ entries: [Transcript.Entry], _ why: String) -> LanguageModelError {
        .unsupportedTranscriptContent(.init(unsupportedContent: entries, debugDescription: why))
    }
#endif
