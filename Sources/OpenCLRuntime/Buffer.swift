// Device memory: a buffer owns one cl_mem. The pool keeps the buffers of finished activations for the next ones.

internal import COpenCL
internal import Logging

/// Device memory, released when the last reference goes.
public final class Buffer {
    let handle: cl_mem
    /// Size in bytes.
    public let byteCount: Int
    private let queue: CommandQueue
    /// What this buffer adds to the queue's allocated bytes.
    private let allocatedBytes: Int
    /// No two buffers of a queue have the same.
    let number: Int

    /// Lets kernels read host memory; without a copy where device and host share their memory.
    ///
    /// The corresponding OpenCL function is `clCreateBuffer` with `CL_MEM_USE_HOST_PTR`.
    ///
    /// - Parameter bytes: Not empty (traps), and valid until the commands that read the buffer have run.
    /// - Throws: `OpenCLError`.
    public init(_ queue: CommandQueue, reading bytes: UnsafeRawBufferPointer) throws(OpenCLError) {
        guard let base = bytes.baseAddress, !bytes.isEmpty else { preconditionFailure("a buffer over no memory") }
        var status = CL_SUCCESS
        guard
            let handle = clCreateBuffer(
                queue.context,
                cl_mem_flags(CL_MEM_READ_ONLY | CL_MEM_USE_HOST_PTR),
                bytes.count,
                UnsafeMutableRawPointer(mutating: base),
                &status
            )
        else {
            throw OpenCLError(
                OpenCLStatus(rawValue: status),
                "clCreateBuffer",
                context: "\(bytes.count) bytes of host memory"
            )
        }
        self.handle = handle
        self.queue = queue
        byteCount = bytes.count
        allocatedBytes = 0
        number = queue.nextBufferNumber()
    }

    /// Allocates device memory.
    ///
    /// The corresponding OpenCL function is `clCreateBuffer`.
    ///
    /// Refuses what the device says it cannot hold before asking the driver: implementations that hand out memory lazily would otherwise
    /// fail in the middle of a kernel, or end the process.
    /// - Throws: `OpenCLError` with `requestedBytes`.
    public init(_ queue: CommandQueue, byteCount: Int) throws(OpenCLError) {
        let size = max(byteCount, 16)
        if size > queue.device.maxAllocationBytes {
            throw OpenCLError(
                .invalidBufferSize,
                "clCreateBuffer",
                context:
                    "\(size) bytes asked, the device's largest single allocation is \(queue.device.maxAllocationBytes)",
                requestedBytes: size
            )
        }
        if queue.allocatedBytes + size > queue.device.globalMemoryBytes {
            throw OpenCLError(
                .memoryObjectAllocationFailure,
                "clCreateBuffer",
                context:
                    "\(size) bytes asked, \(queue.allocatedBytes) of the device's \(queue.device.globalMemoryBytes) in use",
                requestedBytes: size
            )
        }
        var status = CL_SUCCESS
        guard let handle = clCreateBuffer(queue.context, cl_mem_flags(CL_MEM_READ_WRITE), size, nil, &status) else {
            throw OpenCLError(
                OpenCLStatus(rawValue: status),
                "clCreateBuffer",
                context: "\(size) bytes",
                requestedBytes: size
            )
        }
        self.handle = handle
        self.byteCount = size
        allocatedBytes = size
        number = queue.nextBufferNumber()
        self.queue = queue
        queue.allocatedBytes += size
        queue.peakBytes = max(queue.peakBytes, queue.allocatedBytes)
    }

    deinit {
        queue.allocatedBytes -= allocatedBytes
        let status = clReleaseMemObject(handle)
        if status != CL_SUCCESS {
            queue.logger.error("clReleaseMemObject failed: \(OpenCLStatus(rawValue: status))")
        }
    }
}

/// Buffers that no tensor uses at present, by size.
///
/// A buffer goes back to the pool when its tensor is released, although kernels that use it may still be waiting in the queue. That is safe
/// exactly because the queue is in order: whoever takes the buffer next enqueues its commands behind them.
public final class BufferPool {
    private let queue: CommandQueue
    private var free: [Int: [Buffer]] = [:]

    /// An empty pool of buffers that are used on one queue.
    public init(_ queue: CommandQueue) {
        self.queue = queue
    }

    /// Sizes are rounded up to eighths of a power of two, so that tensors of neighbouring sizes share buffers at little waste.
    static func sizeClass(_ byteCount: Int) -> Int {
        let bytes = max(byteCount, 256)
        let step = max(1 << (Int.bitWidth - 1 - bytes.leadingZeroBitCount - 3), 256)
        return (bytes + step - 1) / step * step
    }

    /// A buffer of at least `byteCount` bytes, used before or new.
    ///
    /// Short of memory, unused buffers are released first.
    public func take(_ byteCount: Int) throws(OpenCLError) -> Buffer {
        let size = min(BufferPool.sizeClass(byteCount), max(byteCount, queue.device.maxAllocationBytes))
        if let buffer = free[size]?.popLast() { return buffer }
        do {
            return try Buffer(queue, byteCount: size)
        } catch  where error.status.isOutOfMemory && !free.isEmpty {
            // Released buffers may still be in use by enqueued kernels; memory comes back when those have run.
            removeAll()
            try queue.finish()
            return try Buffer(queue, byteCount: size)
        }
    }

    /// Takes a buffer back.
    public func give(_ buffer: Buffer) {
        free[buffer.byteCount, default: []].append(buffer)
    }

    /// Releases every unused buffer.
    public func removeAll() {
        free.removeAll()
    }
}
