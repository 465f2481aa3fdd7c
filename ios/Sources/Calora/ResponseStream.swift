internal import CaloraBindings

/// The pieces of a response, pulled: the engine runs a few pieces ahead of the reader and waits there.
///
/// ```swift
/// for try await chunk in session.streamResponse(to: "Who wrote it?") {
///     print(chunk.text, terminator: "")
/// }
/// ```
///
/// Each loop over the stream asks anew. Cancelling the reading task makes the loop throw `CancellationError`; leaving the
/// loop early cancels too. Either way decoding stops within one token and the session is as it was before.
public struct ResponseStream: AsyncSequence, Sendable {
    /// A piece of the response.
    public typealias Element = ResponseChunk

    let session: Session
    let request: Request
    let options: GenerationOptions

    enum Request: Sendable {
        case message(String)
        case text(String)
    }

    /// Reads a response.
    public struct Iterator: AsyncIteratorProtocol, Sendable {
        let pull: ResponsePull

        /// The next piece; `nil` after the last.
        ///
        /// - Throws: ``EngineError``, or `CancellationError`.
        public mutating func next() async throws -> ResponseChunk? {
            try await pull.next()
        }
    }

    /// Begins a response. Nothing is computed before the first call of ``Iterator/next()``.
    public func makeAsyncIterator() -> Iterator {
        Iterator(pull: ResponsePull(self))
    }

    /// Reads the whole response.
    ///
    /// - Throws: ``EngineError``, or `CancellationError`.
    public func collect() async throws -> Response {
        var text = ""
        for try await chunk in self {
            text += chunk.text
            if let reason = chunk.finishReason, let usage = chunk.usage {
                return Response(text: text, finishReason: reason, usage: usage)
            }
        }
        throw EngineError.internal(reason: "the response ended without its last chunk")
    }

    /// The same pieces for code that asks for an `AsyncThrowingStream`. It reads ahead without bounds; dropping it or
    /// cancelling the reading task stops decoding within one token, upon which (as with every stream of that type) the
    /// loop ends rather than throws.
    public func buffered() -> AsyncThrowingStream<ResponseChunk, any Error> {
        AsyncThrowingStream { continuation in
            let pull = ResponsePull(self)
            let reader = Task {
                do {
                    while let chunk = try await pull.next() { continuation.yield(chunk) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { termination in
                guard case .cancelled = termination else { return }
                pull.cancel()
                reader.cancel()
            }
        }
    }

    func start() throws -> CaloraBindings.ResponseStream {
        switch request {
        case .message(let prompt): try session.core.respond(prompt: prompt, options: options.bindings())
        case .text(let text): try session.core.complete(text: text, options: options.bindings())
        }
    }
}
