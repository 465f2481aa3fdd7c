#if canImport(CryptoKit)
    import CryptoKit
    import Foundation

    /// SHA-256 by the system.
    public struct SHA256Checksum: Checksum {
        private var hash = SHA256()

        public init() {}

        public mutating func update(_ data: Data) {
            hash.update(data: data)
        }

        public mutating func finish() -> String {
            hash.finalize().map { String(format: "%02x", $0) }.joined()
        }
    }

    /// Fetches over HTTP, with a `Range` header to go on where an interrupted download stopped.
    public struct HTTPTransport: Transport {
        private let session: URLSession

        public init(_ session: URLSession = .shared) {
            self.session = session
        }

        public func fetch(
            _ url: URL,
            from offset: Int
        ) async throws -> (start: Int, bytes: AsyncThrowingStream<Data, any Error>) {
            var request = URLRequest(url: url)
            if offset > 0 { request.setValue("bytes=\(offset)-", forHTTPHeaderField: "Range") }
            let (bytes, response) = try await session.bytes(for: request)
            guard let status = (response as? HTTPURLResponse)?.statusCode, status == 200 || status == 206 else {
                throw URLError(.badServerResponse)
            }
            let chunks = AsyncThrowingStream<Data, any Error> { continuation in
                let reader = Task {
                    do {
                        var chunk = Data()
                        for try await byte in bytes {
                            chunk.append(byte)
                            if chunk.count == 1 << 16 {
                                continuation.yield(chunk)
                                chunk.removeAll(keepingCapacity: true)
                            }
                        }
                        if !chunk.isEmpty { continuation.yield(chunk) }
                        continuation.finish()
                    } catch {
                        continuation.finish(throwing: error)
                    }
                }
                continuation.onTermination = { _ in reader.cancel() }
            }
            return (status == 206 ? offset : 0, chunks)
        }
    }
#endif
