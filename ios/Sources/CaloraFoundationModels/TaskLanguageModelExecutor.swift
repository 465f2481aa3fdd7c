#if canImport(FoundationModels) && (compiler(>=6.4) || os(Linux))
    import Calora
    import Foundation
    import FoundationModels

    /// Answers the requests of `LanguageModelSession`s for a ``TaskLanguageModel``.
    @available(iOS 27.0, macOS 27.0, *)
    public struct TaskLanguageModelExecutor: LanguageModelExecutor {
        /// The model that is run.
        public typealias Model = TaskLanguageModel

        /// What an executor is made for. Executors of equal configurations may be one.
        public struct Configuration: Hashable, Sendable {
            /// The model's folder.
            public let model: URL
            /// The task file or PEFT folder.
            public let adapter: URL?
            /// Tokens that a conversation may have.
            public let contextSize: Int?
            /// Which device computes.
            public let device: Engine.DeviceChoice
        }

        private let configuration: Configuration
        private let conversations: Conversations

        /// An executor. Nothing is loaded before the first request.
        public init(configuration: Configuration) throws {
            self.configuration = configuration
            conversations = Conversations(configuration)
        }

        /// Loads the model and computes the transcript so far, if there is time before the first request.
        public func prewarm(model: TaskLanguageModel, transcript: Transcript) {
            let conversations = conversations
            guard let past = try? Conversation(transcript, answering: false) else { return }
            Task { await conversations.prewarm(past) }
        }

        /// Answers the last prompt of a transcript, delta by delta.
        public func respond(
            to request: LanguageModelExecutorGenerationRequest,
            model: TaskLanguageModel,
            streamingInto channel: LanguageModelExecutorGenerationChannel
        ) async throws {
            if request.schema != nil { throw unsupported(.guidedGeneration) }
            if !request.enabledToolDefinitions.isEmpty { throw unsupported(.toolCalling) }
            let conversation = try Conversation(request.transcript, answering: true)
            let options = Calora.GenerationOptions(request.generationOptions)
            do {
                let session = try await conversations.take(conversation)
                do {
                    try await stream(session.streamResponse(to: conversation.prompt, options: options), into: channel)
                } catch {
                    // It is as it was before.
                    await conversations.give(back: session, conversation.instructions)
                    throw error
                }
                await conversations.give(back: session, conversation.instructions)
            } catch let error as EngineError {
                throw languageModelError(error)
            }
        }

        private func stream(
            _ response: ResponseStream,
            into channel: LanguageModelExecutorGenerationChannel
        ) async throws {
            var silent = true
            for try await chunk in response {
                if !chunk.text.isEmpty {
                    silent = false
                    // A chunk is one token or a few; the usage at the end has the exact number.
                    await channel.send(.response(action: .appendText(chunk.text, tokenCount: 1)))
                }
                guard let usage = chunk.usage else { continue }
                // An executor that sends no text is an error of the session.
                if silent { await channel.send(.response(action: .appendText("", tokenCount: 0))) }
                await channel.send(.response(action: .updateUsage(
                    input: .init(totalTokenCount: usage.promptTokens, cachedTokenCount: usage.cachedTokens),
                    output: .init(totalTokenCount: usage.outputTokens, reasoningTokenCount: 0)
                )))
            }
        }
    }
#endif
