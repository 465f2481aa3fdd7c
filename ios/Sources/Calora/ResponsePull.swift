internal import CaloraBindings

/// One response being read: the only owner of the engine's stream, which cancels when it goes.
final class ResponsePull: Sendable {
    private enum State {
        case waiting(ResponseStream)
        case running(CaloraBindings.ResponseStream)
        case over
    }

    private let state: Locked<State>
    /// A session that nobody else holds must last as long as its response.
    private let session: Session

    init(_ stream: ResponseStream) {
        session = stream.session
        state = Locked(.waiting(stream))
    }

    func next() async throws -> ResponseChunk? {
        guard !Task.isCancelled else {
            cancel()
            throw CancellationError()
        }
        guard let stream = try engineErrors({ try running() }) else { return nil }
        do {
            let chunk = try await withTaskCancellationHandler {
                try await stream.next()
            } onCancel: {
                stream.cancel()
            }
            if chunk?.finishReason != nil || chunk == nil { end() }
            return chunk.map(ResponseChunk.init)
        } catch {
            end()
            guard error.saysCancelled else { throw EngineError(error) }
            // Nobody here asked for it: the session or the engine was closed meanwhile.
            throw Task.isCancelled ? CancellationError() : EngineError.closed(what: "session")
        }
    }

    func cancel() {
        if case .running(let stream) = end() { stream.cancel() }
    }

    /// The engine's stream, begun with the first call; absent once the response is over.
    private func running() throws -> CaloraBindings.ResponseStream? {
        try state.withLock { state in
            switch state {
            case .waiting(let request):
                state = .over // if it cannot begin
                let stream = try request.start()
                state = .running(stream)
                return stream
            case .running(let stream): return stream
            case .over: return nil
            }
        }
    }

    @discardableResult
    private func end() -> State {
        state.withLock { state in
            defer { state = .over }
            return state
        }
    }
}
