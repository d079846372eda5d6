// The device as the operators see it: queue, pool, kernels, tuning, and the storage types of activations and weights.

public import Logging
public import OpenCLRuntime

/// Which implementation multiplies the matrices of linear layers.
public enum GEMMProvider: String, Sendable {
    /// The 1x1 case of `Kernels/convolution.cl`.
    case builtin
    /// CLBlast's SGEMM, with weights in float32.
    case clblast
}

/// A device with everything operators need.
///
/// Used from one executor only.
public final class TensorDevice {
    /// The in-order queue everything runs on.
    public let queue: CommandQueue
    /// Memory of activations.
    public let pool: BufferPool
    /// Tiles and work-group sizes.
    public let tuning: KernelTuning
    /// Storage of activations.
    public let activationType: ElementType
    /// Storage of weights.
    public let weightType: ElementType
    /// Chooses the GEMM for a linear layer by its input and output channels.
    public var gemmProvider: (_ inChannels: Int, _ outChannels: Int) -> GEMMProvider = { _, _ in .builtin }
    private let library: KernelLibrary
    private var zeroBuffer: Buffer?

    /// A device that stores weights in `precision`.
    ///
    /// The CPU family keeps activations in float32 whatever the precision: they are small beside the weights, and converting them in the inner
    /// loop would cost more than the memory is worth (`doc/decisions/0006-float32-activations-on-processors.md`).
    ///
    /// - Parameters:
    ///   - family: The form of the kernels; nil chooses by the kind of device.
    ///   - activations: Storage of activations; nil chooses as above. The CPU family takes float32 only (traps).
    ///   - tuning: Tiles and work-group sizes; nil takes the family's for this device.
    public init(
        _ device: Device,
        precision: ElementType,
        family: KernelFamily? = nil,
        activations: ElementType? = nil,
        tuning: KernelTuning? = nil,
        kernelsDirectory: String? = nil,
        logger: Logger
    ) throws {
        queue = try CommandQueue(device: device, logger: logger)
        pool = BufferPool(queue)
        library = KernelLibrary(queue, directory: kernelsDirectory)
        self.tuning = tuning ?? KernelTuning.forDevice(device, family: family)
        weightType = precision
        activationType = activations ?? (self.tuning.family == .cpu ? .float32 : precision)
        precondition(self.tuning.family != .cpu || activationType == .float32, "CPU kernels take float32 activations")
    }

    /// A kernel built with the macros of this device's storage types and vectors besides its own.
    func kernel(_ name: String, file: String, macros: [String: Int] = [:], arguments: Int) throws -> Kernel {
        var all = macros
        all["ACTIVATION"] = activationType.rawValue
        all["WEIGHT"] = weightType.rawValue
        if tuning.family == .cpu { all["VEC"] = tuning.vectorWidth }
        return try library.kernel(name, file: file, macros: all, argumentCount: arguments)
    }

    /// At least `count` zero elements of the activation type.
    func zeros(_ count: Int) throws -> Buffer {
        let bytes = count * activationType.byteCount
        if let zeroBuffer, zeroBuffer.byteCount >= bytes { return zeroBuffer }
        let buffer = try Buffer(queue, byteCount: max(bytes, 16384))
        let zeros = [UInt8](repeating: 0, count: buffer.byteCount)
        try zeros.withUnsafeBytes { try queue.write($0, to: buffer) }
        zeroBuffer = buffer
        return buffer
    }
}
