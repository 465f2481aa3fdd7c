import Foundation
internal import CaloraBindings

/// How an adapter is opened. No text of it shows the key.
public struct AdapterOpenOptions: Sendable {
    /// The 32 bytes that an encrypted adapter was encrypted with; a plain one does not need them.
    public var key: Data?
    /// Public keys of 32 bytes: only what one of them signed is opened. An empty list trusts nobody; without a list no
    /// signature is asked for.
    public var trustedSigners: [Data]?
    /// Whether the adapter must prove, by two short passes, that it acts, and as it did where it was made.
    public var checksCanary: Bool

    /// Nothing is asked for unless it is given.
    public init(key: Data? = nil, trustedSigners: [Data]? = nil, checksCanary: Bool = false) {
        self.key = key
        self.trustedSigners = trustedSigners
        self.checksCanary = checksCanary
    }

    var bindings: CaloraBindings.AdapterOpenOptions {
        CaloraBindings.AdapterOpenOptions(key: key, trustedSigners: trustedSigners, checkCanary: checksCanary)
    }
}

extension AdapterOpenOptions: CustomStringConvertible, CustomReflectable {
    /// The options, the key hidden.
    public var description: String {
        let signers = trustedSigners.map { String($0.count) } ?? "none"
        return "AdapterOpenOptions(key: \(key == nil ? "none" : "hidden"), trustedSigners: \(signers), "
            + "checksCanary: \(checksCanary))"
    }

    /// Nothing to look into: `dump` would print the key.
    public var customMirror: Mirror {
        Mirror(self, children: [])
    }
}
