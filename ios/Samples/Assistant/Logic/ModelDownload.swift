import Foundation

/// A file to be had, and what it must be.
public struct RemoteFile: Sendable, Hashable {
    public let url: URL
    /// Bytes of the whole file.
    public let size: Int
    /// SHA-256 of the whole file, in hexadecimal.
    public let sha256: String

    public init(url: URL, size: Int, sha256: String) {
        self.url = url
        self.size = size
        self.sha256 = sha256
    }
}

/// Fetches a file from some byte on.
public protocol Transport: Sendable {
    /// - Returns: The byte at which the answer begins (0 from servers that do not resume), and its bytes.
    func fetch(_ url: URL, from offset: Int) async throws -> (start: Int, bytes: AsyncThrowingStream<Data, any Error>)
}

/// Sums up a file's bytes: SHA-256 in the app.
public protocol Checksum {
    init()
    mutating func update(_ data: Data)
    mutating func finish() -> String
}

public enum DownloadError: Error, Equatable {
    /// The connection ended early; downloading again goes on from there.
    case incomplete(received: Int, expected: Int)
    /// What came is not the file. It was deleted.
    case wrongChecksum(expected: String, found: String)
    /// The server sends more than the file. What came was deleted.
    case tooLong(expected: Int)
}

/// Downloads a file so that it is there whole and verified, or not at all. What an interrupted download has left is gone
/// on with.
public struct ModelDownload<Sum: Checksum>: Sendable {
    private let file: RemoteFile
    private let destination: URL
    private let transport: any Transport

    public init(_ file: RemoteFile, to destination: URL, over transport: any Transport, verifiedBy sum: Sum.Type) {
        self.file = file
        self.destination = destination
        self.transport = transport
    }

    /// Where bytes are until the file is whole.
    var part: URL { destination.appendingPathExtension("part") }

    /// - Parameter progress: From 0 to 1.
    public func run(progress: @Sendable (Double) -> Void = { _ in }) async throws {
        let files = FileManager.default
        guard !files.fileExists(atPath: destination.path) else { return }
        try files.createDirectory(at: destination.deletingLastPathComponent(), withIntermediateDirectories: true)
        if !files.fileExists(atPath: part.path) { try Data().write(to: part) }
        let handle = try FileHandle(forUpdating: part)
        defer { try? handle.close() }
        if try handle.seekToEnd() < UInt64(file.size) {
            try await fill(handle, progress)
        }
        let found = try checksum(handle)
        guard found == file.sha256.lowercased() else {
            try files.removeItem(at: part)
            throw DownloadError.wrongChecksum(expected: file.sha256, found: found)
        }
        try handle.synchronize()
        // Atomic: a reader sees no file or the whole one.
        guard rename(part.path, destination.path) == 0 else {
            throw CocoaError(.fileWriteUnknown, userInfo: [NSFilePathErrorKey: destination.path])
        }
    }

    private func fill(_ handle: FileHandle, _ progress: @Sendable (Double) -> Void) async throws {
        let have = Int(try handle.seekToEnd())
        let (start, bytes) = try await transport.fetch(file.url, from: have)
        // What the server does not resume begins anew.
        var received = start == have ? have : 0
        if received == 0 {
            guard start == 0 else { throw DownloadError.incomplete(received: 0, expected: file.size) }
            try handle.truncate(atOffset: 0)
        }
        for try await data in bytes {
            try Task.checkCancellation()
            received += data.count
            guard received <= file.size else {
                try FileManager.default.removeItem(at: part)
                throw DownloadError.tooLong(expected: file.size)
            }
            try handle.write(contentsOf: data)
            progress(Double(received) / Double(file.size))
        }
        try Task.checkCancellation()
        guard received == file.size else {
            throw DownloadError.incomplete(received: received, expected: file.size)
        }
    }

    private func checksum(_ handle: FileHandle) throws -> String {
        var sum = Sum()
        try handle.seek(toOffset: 0)
        while let data = try handle.read(upToCount: 1 << 20), !data.isEmpty {
            sum.update(data)
        }
        return sum.finish().lowercased()
    }
}
