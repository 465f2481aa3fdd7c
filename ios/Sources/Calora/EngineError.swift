import Foundation

/// What can go wrong, with what a person or a program needs to act.
///
/// Cancellation is not among the cases: whatever is cancelled throws `CancellationError`.
public enum EngineError: Error, Equatable, Sendable {
    /// A file or folder is not there.
    case fileNotFound(path: String, reason: String)
    /// A file could not be read.
    case fileUnreadable(path: String, reason: String)
    /// A file's content is damaged, truncated, or not what its name says.
    case invalidFile(path: String, reason: String)
    /// A model or adapter asks for something that calora does not compute.
    case unsupported(path: String, feature: String, reason: String)
    /// The adapter was made for another base model.
    case adapterMismatch(adapter: String, expectedBase: String, actualBase: String)
    /// The adapter would change nothing in this model.
    case adapterTouchesNothing(adapter: String, reason: String)
    /// The adapter is encrypted, and no key or another one was given.
    case adapterLocked(path: String, reason: String)
    /// The adapter has no signature of a trusted signer, or was changed after it was signed.
    case adapterUntrusted(path: String, reason: String)
    /// The adapter fits by its shapes and does nothing, or something else than it was made for.
    case adapterUnproven(adapter: String, reason: String)
    /// A file that was open was truncated or written to in place.
    case fileChanged(path: String)
    /// An adapter was to be replaced or removed in another state than it is in; nil is none.
    case versionConflict(adapter: String, expected: String?, actual: String?)
    /// Prompt and conversation need `tokenCount` tokens, and the session holds `contextSize`.
    case contextSizeExceeded(contextSize: Int, tokenCount: Int)
    /// An option has a value that cannot work.
    case invalidOption(option: String, value: String, reason: String)
    /// No device of the wanted kind (`gpu` or `cpu`) can be used.
    case deviceUnavailable(wanted: String, reason: String)
    /// The system took the GPU away over and over within one request; the engine makes it again by itself.
    case deviceLost(reason: String)
    /// Memory ran out.
    case outOfMemory(what: String, neededBytes: UInt64, reason: String)
    /// The model would take more memory than there is; nothing was loaded. The plan says what would fit.
    case doesNotFit(plan: MemoryPlan, reason: String)
    /// The session is answering already.
    case busy
    /// The engine, session or adapter was closed.
    case closed(what: String)
    /// A defect of calora or of a driver; please report it with the diagnostics.
    case `internal`(reason: String)
}

extension EngineError: LocalizedError {
    /// What happened.
    public var errorDescription: String? {
        switch self {
        case .fileNotFound(let path, let reason): "\(path) is missing: \(reason)"
        case .fileUnreadable(let path, let reason): "\(path) cannot be read: \(reason)"
        case .invalidFile(let path, let reason): "\(path) is damaged or not of the expected format: \(reason)"
        case .unsupported(let path, let feature, let reason): "\(path): \(feature) is not supported: \(reason)"
        case .adapterMismatch(let adapter, let expected, let actual):
            "adapter \(adapter) was made for base \(expected), but this model is \(actual)"
        case .adapterTouchesNothing(let adapter, let reason):
            "adapter \(adapter) touches nothing in this model: \(reason)"
        case .adapterLocked(let path, let reason): "\(path) is encrypted: \(reason)"
        case .adapterUntrusted(let path, let reason): "\(path) is not trusted: \(reason)"
        case .adapterUnproven(let adapter, let reason): "adapter \(adapter) does not act as it should: \(reason)"
        case .fileChanged(let path): "\(path) changed after it was opened"
        case .versionConflict(let adapter, let expected, let actual):
            "adapter \(adapter) is at version \(actual ?? "none"), not \(expected ?? "none")"
        case .contextSizeExceeded(let size, let count): "the context holds \(size) tokens, \(count) are needed"
        case .invalidOption(let option, let value, let reason): "\(option) = \(value): \(reason)"
        case .deviceUnavailable(let wanted, let reason): "no usable \(wanted) device: \(reason)"
        case .deviceLost(let reason): "the GPU was lost: \(reason)"
        case .outOfMemory(let what, let bytes, let reason): "out of memory for \(what) (\(bytes) bytes): \(reason)"
        case .doesNotFit(_, let reason): reason
        case .busy: "the session is answering another request"
        case .closed(let what): "the \(what) is closed"
        case .internal(let reason): "internal error: \(reason)"
        }
    }

    /// What to do about it, where something can be done.
    public var recoverySuggestion: String? {
        switch self {
        case .fileNotFound, .invalidFile: "Download the file again."
        case .adapterMismatch, .adapterTouchesNothing: "Use the adapter with the model it was made for."
        case .adapterLocked: "Open the adapter with the key that it was encrypted with."
        case .adapterUntrusted: "Get the adapter from its source again."
        case .adapterUnproven: "Use the adapter with the model it was made for, or get it again."
        case .fileChanged: "Open the file again, and replace files by renaming."
        case .versionConflict: "Look at the library again and decide anew."
        case .contextSizeExceeded: "Shorten the prompt or begin a new session."
        case .deviceUnavailable: "Choose the device automatically, or the CPU."
        case .deviceLost: "Ask again, or load with the CPU as fallback."
        case .outOfMemory: "Close sessions, lower the context size, or take a smaller model."
        case .doesNotFit: "Load with a smaller context, with the policy shrink, or take a smaller model."
        case .busy: "Wait for the response, cancel it, or open another session."
        case .fileUnreadable, .unsupported, .invalidOption, .closed, .internal: nil
        }
    }
}
