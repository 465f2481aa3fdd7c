internal import CaloraBindings

/// Whether a model can run here.
public enum Availability: Sendable, Hashable {
    /// It can, as far as headers and device tell: the bytes of its weights, and the device that would compute.
    case available(weightBytes: UInt64, device: String)
    /// It cannot: why for programs, and why for people.
    case unavailable(reason: Reason, detail: String)

    /// Why a model cannot run.
    public enum Reason: Sendable, Hashable, CaseIterable {
        /// A file of the model is missing: download it.
        case modelMissing
        /// A file of the model is damaged: download it again.
        case modelDamaged
        /// The model asks for something this version does not compute.
        case modelUnsupported
        /// A GPU was asked for and none is usable.
        case noDevice
        /// It would take more memory than there is; ``Engine/plan(for:)`` has the numbers.
        case notEnoughMemory
        /// An option of the configuration cannot work.
        case invalidOption
        /// Something else; the detail says what.
        case other
    }

    init(_ availability: CaloraBindings.Availability) {
        switch availability {
        case .available(let bytes, let device): self = .available(weightBytes: bytes, device: device)
        case .unavailable(let reason, let detail): self = .unavailable(reason: Reason(reason), detail: detail)
        }
    }
}

extension Availability.Reason {
    fileprivate init(_ reason: CaloraBindings.UnavailableReason) {
        switch reason {
        case .modelMissing: self = .modelMissing
        case .modelDamaged: self = .modelDamaged
        case .modelUnsupported: self = .modelUnsupported
        case .noDevice: self = .noDevice
        case .notEnoughMemory: self = .notEnoughMemory
        case .invalidOption: self = .invalidOption
        case .other: self = .other
        }
    }
}
