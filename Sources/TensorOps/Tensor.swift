// A tensor is device memory with a shape and an element type: contiguous, channels last, nothing else.

public import OpenCLRuntime

/// How numbers are stored on the device; kernels compute in 32-bit float whatever the storage.
///
/// The raw values are those of the macros ACTIVATION and WEIGHT in `Kernels/common.clh` and of the source types in `Kernels/packing.cl`.
public enum ElementType: Int, CaseIterable, Sendable {
    /// IEEE 754 binary32.
    case float32 = 0
    /// IEEE 754 binary16.
    case float16 = 1
    /// The upper half of a binary32.
    case bfloat16 = 2

    /// Bytes of one element.
    public var byteCount: Int { self == .float32 ? 4 : 2 }
}

/// A contiguous tensor on a device: activations are `[N, H, W, C]`, tokens `[B, T, C]`, the same memory with H and W as one.
public struct Tensor {
    /// Extents, outermost first.
    public let shape: [Int]
    /// Storage type of the elements.
    public let elementType: ElementType
    /// The device it lives on.
    public let device: TensorDevice
    private let storage: Storage

    /// Returns its buffer to the pool with the last reference; `BufferPool` says why that is safe while kernels still run.
    private final class Storage {
        let buffer: Buffer
        let pool: BufferPool

        init(_ buffer: Buffer, pool: BufferPool) {
            self.buffer = buffer
            self.pool = pool
        }

        deinit {
            pool.give(buffer)
        }
    }

    /// A tensor with undefined contents from the pool.
    ///
    /// - Parameter isScratch: Whether it is released before anything is made that outlives it; see `BufferPool.take`.
    /// - Throws: `OpenCLError`; out of memory with the bytes asked for.
    public init(
        _ shape: [Int],
        _ elementType: ElementType? = nil,
        isScratch: Bool = false,
        on device: TensorDevice
    ) throws {
        let elementType = elementType ?? device.activationType
        self.shape = shape
        self.elementType = elementType
        self.device = device
        storage = Storage(
            try device.pool.take(shape.reduce(1, *) * elementType.byteCount, isScratch: isScratch),
            pool: device.pool
        )
    }

    private init(_ tensor: Tensor, shape: [Int], on device: TensorDevice) {
        self.shape = shape
        elementType = tensor.elementType
        self.device = device
        storage = tensor.storage
    }

    /// The device memory; it may be larger than the tensor.
    public var buffer: Buffer { storage.buffer }

    /// Number of elements.
    public var count: Int { shape.reduce(1, *) }

    /// The innermost extent: channels.
    public var channels: Int { shape.last ?? 1 }

    /// The number of rows of `channels` elements.
    public var rows: Int { shape.dropLast().reduce(1, *) }

    /// The same memory with another shape; the element counts must agree (traps).
    public func reshaped(_ shape: [Int]) -> Tensor {
        precondition(shape.reduce(1, *) == count, "reshape of \(self.shape) to \(shape)")
        return Tensor(self, shape: shape, on: device)
    }

    /// The same memory for the operators of another device of the same queue (traps otherwise); see `TensorDevice.withFloat32Activations`.
    public func on(_ device: TensorDevice) -> Tensor {
        precondition(device.queue === self.device.queue, "a tensor of another queue")
        return Tensor(self, shape: shape, on: device)
    }

    /// Waits for the device and returns the elements as floats.
    public func floats() throws -> [Float] {
        let source = try elementType == .float32 ? self : converted(to: .float32)
        var values = [Float](repeating: 0, count: count)
        try values.withUnsafeMutableBytes { try device.queue.read(source.buffer, into: $0) }
        return values
    }
}

extension TensorDevice {
    /// A tensor with the given values.
    ///
    /// - Parameters:
    ///   - values: As many as the shape has elements (traps).
    ///   - type: Storage type; nil is the device's activation type.
    public func tensor(_ values: [Float], shape: [Int], type: ElementType? = nil) throws -> Tensor {
        precondition(values.count == shape.reduce(1, *), "\(values.count) values for shape \(shape)")
        let tensor = try Tensor(shape, .float32, on: self)
        try values.withUnsafeBytes { try queue.write($0, to: tensor.buffer) }
        return try tensor.converted(to: type ?? activationType)
    }
}
