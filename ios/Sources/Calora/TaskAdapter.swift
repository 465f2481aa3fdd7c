internal import CaloraBindings

/// A task in a file, memory-mapped and checked against one engine's model.
///
/// Opening costs microseconds to milliseconds and no memory; tensors move to the device when a session first uses the
/// adapter, or with ``Adapters/preload(_:)``.
public final class TaskAdapter: Sendable {
    let core: CaloraBindings.TaskAdapter

    /// What the file says of itself.
    public let info: AdapterInfo

    init(core: CaloraBindings.TaskAdapter) {
        self.core = core
        info = AdapterInfo(core.info())
    }

    /// Which of the model's linears it touches, which not, and whether the base could be checked; for people.
    public var coverage: String {
        core.coverage()
    }

    /// The adapter acting more or less strongly: 1 as trained, 0 as if it were not there.
    public func scaled(by scale: Double) -> ScaledAdapter {
        ScaledAdapter(self, scale: scale)
    }

    /// Lets go of the file. Sessions that use the adapter keep it until they switch or close; closing again does nothing.
    public func close() {
        core.close()
    }
}

/// An adapter and how strongly it acts.
public struct ScaledAdapter: Sendable {
    /// The adapter.
    public let adapter: TaskAdapter
    /// 1 as trained, 0 as if it were not there.
    public let scale: Double

    /// An adapter at a scale.
    public init(_ adapter: TaskAdapter, scale: Double = 1) {
        self.adapter = adapter
        self.scale = scale
    }

    var bindings: CaloraBindings.ScaledAdapter {
        CaloraBindings.ScaledAdapter(adapter: adapter.core, scale: Float(scale))
    }
}
