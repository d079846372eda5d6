// The device as the operators see it: queue, pool, kernels, tuning, and the storage types of activations and weights.

internal import Foundation
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
    /// Storage of what only matrix products and attention read: results of normalisations, attention and most linear layers.
    public let operandType: ElementType
    /// Storage of weights.
    public let weightType: ElementType
    /// Chooses the GEMM for a linear layer by its input and output channels.
    public var gemmProvider: (_ inChannels: Int, _ outChannels: Int) -> GEMMProvider = { _, _ in .builtin }
    /// Bytes the host has left, nil where that is not known; tests put another machine here.
    public var hostAvailableBytes: () -> Int? = { HostMemory.availableBytes() }
    /// Up to this much memory a computation need not be thrifty: half a gibibyte where it is taken from the rest of the machine, a quarter of a
    /// device of its own.
    public var comfortableBytes: Int
    private let hasDotProduct: Bool
    private let library: KernelLibrary
    private var kernels: [KernelKey: Kernel] = [:]
    private var zeroBuffer: Buffer?

    /// What operators ask for; the macros of the device are the same for all.
    private struct KernelKey: Hashable {
        let file: String
        let name: String
        let macros: [String: Int]
    }

    /// A device that stores weights in `precision`.
    ///
    /// The CPU family keeps activations in float32 whatever the precision: they are small beside the weights, and converting them in the inner
    /// loop would cost more than the memory is worth (`doc/decisions/0006-float32-activations-on-processors.md`). With bfloat16 weights, on
    /// a processor that multiplies pairs of bfloat16, operands of matrix products are bfloat16 too.
    ///
    /// - Parameters:
    ///   - family: The form of the kernels; nil chooses by the kind of device. The NVIDIA family is used only if it passes its self-test, else
    ///     the GPU family.
    ///   - activations: Storage of activations; nil chooses as above. The CPU family takes float32 only (traps).
    ///   - operands: Storage of operands; nil chooses as above. Other than activations only on the CPU family, and bfloat16 (traps).
    ///   - tuning: Tiles and work-group sizes; nil takes the family's for this device. Given, its family is used without a test.
    ///   - kernelsDirectory: A directory with `.cl` files to use instead of the embedded ones.
    ///   - cacheDirectory: Where built kernels are kept, in a directory `programs`; nil keeps none.
    ///   - buildsInBackground: Whether operators return while kernels are being built, on as many threads as there are processors to spare;
    ///     what cannot be built is then reported by what next waits for the device.
    public convenience init(
        _ device: Device,
        precision: ElementType,
        family: KernelFamily? = nil,
        activations: ElementType? = nil,
        operands: ElementType? = nil,
        tuning: KernelTuning? = nil,
        kernelsDirectory: String? = nil,
        cacheDirectory: String? = nil,
        buildsInBackground: Bool = false,
        logger: Logger
    ) throws {
        let queue = try CommandQueue(device: device, logger: logger)
        // On GPUs the driver waits for the device when memory is released, and nobody else needs what the pool keeps.
        let pool = BufferPool(queue, keptBytes: device.kind == .cpu ? 64 << 20 : 512 << 20)
        let library = KernelLibrary(
            queue,
            directory: kernelsDirectory,
            cache: cacheDirectory.map { ProgramCache(directory: $0 + "/programs", logger: logger) },
            backgroundThreads: buildsInBackground ? min(ProcessInfo.processInfo.activeProcessorCount - 1, 8) : 0
        )
        try self.init(
            queue,
            pool,
            library,
            precision: precision,
            family: family,
            activations: activations,
            operands: operands,
            tuning: tuning
        )
    }

    private init(
        _ queue: CommandQueue,
        _ pool: BufferPool,
        _ library: KernelLibrary,
        precision: ElementType,
        family: KernelFamily? = nil,
        activations: ElementType? = nil,
        operands: ElementType? = nil,
        tuning: KernelTuning? = nil
    ) throws {
        (self.queue, self.pool, self.library) = (queue, pool, library)
        comfortableBytes = TensorDevice.comfortableBytes(of: queue.device)
        self.tuning =
            tuning
            ?? TensorDevice.tested(
                KernelTuning.forDevice(queue.device, precision: precision, family: family),
                library,
                queue
            )
        // NVIDIA's GPUs have no more, and OpenCL has no way to ask.
        if [.gpu, .nvidia].contains(self.tuning.family) { queue.outerWorkGroupLimit = 65535 }
        weightType = precision
        activationType = activations ?? (self.tuning.family == .cpu ? .float32 : precision)
        precondition(self.tuning.family != .cpu || activationType == .float32, "CPU kernels take float32 activations")
        precondition(
            self.tuning.family != .nvidia || (precision == .float16 && activationType == .float16),
            "tensor cores take float16"
        )
        hasDotProduct =
            self.tuning.family == .cpu && self.tuning.vectorWidth == 16 && precision == .bfloat16
            && queue.device.hasBFloat16DotProduct && TensorDevice.dotProductWorks(library, queue)
        operandType = operands ?? (hasDotProduct ? .bfloat16 : activationType)
        precondition(
            operandType == activationType || (self.tuning.family == .cpu && operandType == .bfloat16),
            "\(operandType) operands beside \(activationType) activations"
        )
    }

    /// The same queue, pool and kernels with another tuning, in float16: for the self-test.
    private init(_ queue: CommandQueue, _ pool: BufferPool, _ library: KernelLibrary, _ tuning: KernelTuning) {
        (self.queue, self.pool, self.library, self.tuning) = (queue, pool, library, tuning)
        (weightType, activationType, operandType) = (.float16, .float16, .float16)
        hasDotProduct = false
        comfortableBytes = TensorDevice.comfortableBytes(of: queue.device)
    }

    /// The same device, with its queue, memory and kernels, for a model whose weights are stored otherwise.
    ///
    /// - Parameter precision: As for a device of its own.
    public func storingWeights(as precision: ElementType) throws -> TensorDevice {
        if precision == weightType { return self }
        let device = try TensorDevice(queue, pool, library, precision: precision)
        device.comfortableBytes = comfortableBytes
        device.hostAvailableBytes = hostAvailableBytes
        return device
    }

    /// The same device for what overflows in float16, with activations in float32; itself where they are that already.
    ///
    /// Tensor cores take float16 only: the kernels for any GPU take their place.
    public func withFloat32Activations() -> TensorDevice {
        activationType == .float32 ? self : TensorDevice(self, activations: .float32)
    }

    private init(_ other: TensorDevice, activations: ElementType) {
        (queue, pool, library, weightType) = (other.queue, other.pool, other.library, other.weightType)
        var tuning = other.tuning
        if tuning.family == .nvidia { tuning.family = .gpu }
        self.tuning = tuning
        (activationType, operandType) = (activations, activations)
        hasDotProduct = false
        comfortableBytes = other.comfortableBytes
        gemmProvider = other.gemmProvider
        hostAvailableBytes = other.hostAvailableBytes
    }

    /// See `comfortableBytes`.
    private static func comfortableBytes(of device: Device) -> Int {
        device.kind == .cpu ? 512 << 20 : device.globalMemoryBytes / 4
    }

    /// The tuning itself, or the GPU family's in place of the NVIDIA family's if that fails its self-test.
    ///
    /// The test has a context of its own: a kernel that leaves its memory spoils the context for all that comes after it.
    private static func tested(
        _ tuning: KernelTuning,
        _ library: KernelLibrary,
        _ queue: CommandQueue
    ) -> KernelTuning {
        guard tuning.family == .nvidia else { return tuning }
        let reason: String
        do {
            let apart = try CommandQueue(device: queue.device, logger: queue.logger)
            let (pool, library) = (BufferPool(apart), library.anew(for: apart))
            let test = TensorCoreTest(device: { TensorDevice(apart, pool, library, $0) }, tuning: tuning)
            guard let disagreement = try test.firstDisagreement() else {
                queue.logger.info("tensor cores are used: their kernels agree with the plain ones")
                return tuning
            }
            reason = disagreement
        } catch {
            reason = "\(error)"
        }
        queue.logger.warning(
            "tensor cores are not used; the kernels for any GPU take their place, and are slower",
            metadata: ["reason": "\(reason)"]
        )
        var portable = tuning
        portable.family = .gpu
        return portable
    }

    /// Whether the device's compiler takes the instruction and it gives the sums of products it should.
    private static func dotProductWorks(_ library: KernelLibrary, _ queue: CommandQueue) -> Bool {
        // Small whole numbers are exact in bfloat16, and so are their products and sums.
        let (low, high, sums) = ((0..<16).map { Float($0 - 7) }, (0..<16).map { Float(3 * $0 % 11) }, 2)
        let pairs = zip(low, high).map { $0.bitPattern >> 16 | $1.bitPattern & 0xffff_0000 }
        let swapped = zip(low.reversed(), high).map { $0.bitPattern >> 16 | $1.bitPattern & 0xffff_0000 }
        let expected = (0..<16).map { Float(sums) + low[$0] * low[15 - $0] + high[$0] * high[$0] }
        var result = [Float](repeating: Float(sums), count: 16)
        do {
            let macros = ["DOT": 1, "VEC": 16]
            let kernel = try library.kernel("dot_probe", file: "elementwise.cl", macros: macros, argumentCount: 3)
            let buffers = try (0..<3).map { _ in try Buffer(queue, byteCount: 64) }
            try pairs.withUnsafeBytes { try queue.write($0, to: buffers[0]) }
            try swapped.withUnsafeBytes { try queue.write($0, to: buffers[1]) }
            try result.withUnsafeBytes { try queue.write($0, to: buffers[2]) }
            try kernel.enqueue(buffers.map { .buffer($0) }, global: [1], local: [1])
            try result.withUnsafeMutableBytes { try queue.read(buffers[2], into: $0) }
        } catch {
            // Expected of compilers that do not take the assembly; bfloat16 works without it, as storage.
            queue.logger.info("bfloat16 without dot products", metadata: ["reason": "\(error)"])
            return false
        }
        if result != expected {
            queue.logger.warning("the processor's bfloat16 dot product gives wrong sums; it is not used")
        }
        return result == expected
    }

    /// A kernel built with the macros of this device's storage types and vectors besides its own.
    func kernel(_ name: String, file: String, macros: [String: Int] = [:], arguments: Int) throws -> Kernel {
        if queue.isDryRun { return Kernel(dryRunOf: name, on: queue) }
        // Asked for at every launch: putting the options together and sorting them costs more than enqueueing.
        let key = KernelKey(file: file, name: name, macros: macros)
        if let kernel = kernels[key] { return kernel }
        var all = macros
        all["ACTIVATION"] = activationType.rawValue
        all["WEIGHT"] = weightType.rawValue
        if operandType != activationType { all["OPERAND"] = operandType.rawValue }
        if hasDotProduct { all["DOT"] = 1 }
        if tuning.family == .cpu { all["VEC"] = tuning.vectorWidth }
        let kernel = try library.kernel(name, file: file, macros: all, argumentCount: arguments)
        kernels[key] = kernel
        return kernel
    }

    /// At least `count` zero elements of any type.
    func zeros(_ count: Int) throws -> Buffer {
        let bytes = count * ElementType.float32.byteCount
        if let zeroBuffer, zeroBuffer.byteCount >= bytes { return zeroBuffer }
        if queue.isDryRun { return try Buffer(queue, byteCount: bytes) }
        let buffer = try Buffer(queue, byteCount: max(bytes, 16384))
        let zeros = [UInt8](repeating: 0, count: buffer.byteCount)
        try zeros.withUnsafeBytes { try queue.write($0, to: buffer) }
        // Kept only once it is zero: what waits in line behind a kernel that cannot be built is never written.
        try queue.finish()
        zeroBuffer = buffer
        return buffer
    }
}
