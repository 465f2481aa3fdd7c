internal import CaloraBindings

/// What computes, for diagnostics.
public struct DeviceInfo: Sendable, Hashable {
    /// What kind of device.
    public enum Kind: Sendable, Hashable, CaseIterable {
        /// A GPU.
        case gpu
        /// The processor's own cores.
        case cpu

        init(_ kind: CaloraBindings.DeviceKind) {
            switch kind {
            case .gpu: self = .gpu
            case .cpu: self = .cpu
            }
        }
    }

    /// GPU or CPU.
    public let kind: Kind
    /// The GPU's or processor's name.
    public let name: String
    /// Driver, backend, instruction sets and capabilities in use.
    public let detail: String
    /// Precision of the activations: `f32` or `int8`.
    public let activations: String

    init(_ info: CaloraBindings.DeviceInfo) {
        kind = Kind(info.kind)
        name = info.name
        detail = info.detail
        activations = info.activations
    }
}
