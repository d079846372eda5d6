// Device memory: a buffer owns one cl_mem. The pool keeps the buffers of finished activations for the next ones, and tells beforehand how
// much of it a computation will take.

internal import COpenCL
internal import Logging

/// Device memory, released when the last reference goes.
public final class Buffer {
    /// Nil in a dry run, where a buffer is but its size.
    let handle: cl_mem?
    /// Size in bytes.
    public let byteCount: Int
    private let queue: CommandQueue
    private let dryRun: DryRun?
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
        dryRun = nil
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
        self.byteCount = size
        allocatedBytes = size
        self.queue = queue
        number = queue.nextBufferNumber()
        dryRun = queue.dryRun
        if let dryRun {
            handle = nil
            dryRun.allocate(size)
            return
        }
        let limits = queue.limits
        if size > limits.allocationBytes {
            throw OpenCLError(
                .invalidBufferSize,
                "clCreateBuffer",
                context:
                    "\(size) bytes asked, the device's largest single allocation is \(limits.allocationBytes)",
                requestedBytes: size
            )
        }
        if queue.allocatedBytes + size > limits.totalBytes {
            throw OpenCLError(
                .memoryObjectAllocationFailure,
                "clCreateBuffer",
                context:
                    "\(size) bytes asked, \(queue.allocatedBytes) of the device's \(limits.totalBytes) in use",
                requestedBytes: size
            )
        }
        let pages = queue.device.kind == .cpu && size >= HostPages.leastBytes ? HostPages(byteCount: size) : nil
        let flags = pages == nil ? CL_MEM_READ_WRITE : CL_MEM_READ_WRITE | CL_MEM_USE_HOST_PTR
        var status = CL_SUCCESS
        guard
            let handle = clCreateBuffer(queue.context, cl_mem_flags(flags), size, pages?.bytes.baseAddress, &status)
        else {
            pages?.unmap()
            throw OpenCLError(
                OpenCLStatus(rawValue: status),
                "clCreateBuffer",
                context: "\(size) bytes",
                requestedBytes: size
            )
        }
        do {
            try pages?.unmapWhenDeleted(handle)
        } catch {
            clReleaseMemObject(handle)
            pages?.unmap()
            throw error
        }
        self.handle = handle
        queue.allocatedBytes += size
        queue.peakBytes = max(queue.peakBytes, queue.allocatedBytes)
    }

    deinit {
        if let dryRun {
            dryRun.allocatedBytes -= allocatedBytes
            return
        }
        queue.allocatedBytes -= allocatedBytes
        let status = clReleaseMemObject(handle)
        if status != CL_SUCCESS {
            queue.logger.error("clReleaseMemObject failed: \(OpenCLStatus(rawValue: status))")
        }
    }
}

/// Counts what would be allocated while nothing is.
final class DryRun {
    var allocatedBytes = 0
    private(set) var peakBytes = 0
    private(set) var largestAllocation = 0

    func allocate(_ byteCount: Int) {
        allocatedBytes += byteCount
        peakBytes = max(peakBytes, allocatedBytes)
        largestAllocation = max(largestAllocation, byteCount)
    }
}

/// Buffers that no tensor uses at present.
///
/// A buffer goes back to the pool when its tensor is released, although kernels that use it may still be waiting in the queue. That is safe
/// exactly because the queue is in order: whoever takes the buffer next enqueues its commands behind them.
///
/// What the pool holds is bounded by what was in use at once: before it grows beyond its high-water mark, unused buffers are released, those
/// unused for longest first. So the mark rises only while every buffer is in use.
public final class BufferPool {
    /// Up to this many bytes the pool grows without releasing anything: small pictures are to cost no allocation but the first.
    public let keptBytes: Int
    private let queue: CommandQueue
    private var state = State()

    private struct State {
        /// In the order in which they were given back.
        var free: [Buffer] = []
        /// Bytes of all buffers of the pool, in use or not.
        var heldBytes = 0
        var highWaterBytes = 0
    }

    /// An empty pool of buffers that are used on one queue.
    public init(_ queue: CommandQueue, keptBytes: Int = 64 << 20) {
        self.queue = queue
        self.keptBytes = keptBytes
    }

    /// Bytes of all buffers, in use or not.
    public var heldBytes: Int { state.heldBytes }

    /// Bytes of the buffers that no tensor uses.
    public var unusedBytes: Int { state.free.reduce(0) { $0 + $1.byteCount } }

    /// The most bytes of all buffers at once since the pool was last emptied.
    public var highWaterBytes: Int { state.highWaterBytes }

    /// Sizes are rounded up to eighths of a power of two, large ones to parts of 32, so that tensors of neighbouring sizes share buffers at
    /// little waste.
    static func sizeClass(_ byteCount: Int) -> Int {
        let bytes = max(byteCount, 256)
        let parts = bytes > 1 << 20 ? 5 : 3
        let step = max(1 << (Int.bitWidth - 1 - bytes.leadingZeroBitCount - parts), 256)
        return (bytes + step - 1) / step * step
    }

    /// A buffer of at least `byteCount` bytes, used before or new.
    ///
    /// Short of memory, unused buffers are released first.
    /// - Parameter isScratch: Whether it is given back before anything else is taken that outlives it; then any larger unused buffer will do.
    public func take(_ byteCount: Int, isScratch: Bool = false) throws(OpenCLError) -> Buffer {
        let size = min(BufferPool.sizeClass(byteCount), max(byteCount, queue.limits.allocationBytes))
        if let index = state.free.lastIndex(where: { $0.byteCount == size }) { return state.free.remove(at: index) }
        if isScratch {
            let larger = state.free.indices.filter { state.free[$0].byteCount >= size }
            if let index = larger.min(by: { state.free[$0].byteCount < state.free[$1].byteCount }) {
                return state.free.remove(at: index)
            }
        }
        let mark = max(state.highWaterBytes, keptBytes)
        while state.heldBytes + size > mark, !state.free.isEmpty {
            state.heldBytes -= state.free.removeFirst().byteCount
        }
        let buffer: Buffer
        do {
            buffer = try Buffer(queue, byteCount: size)
        } catch  where error.status.isOutOfMemory {
            // Released buffers may still be in use by enqueued kernels; memory comes back when those have run.
            removeAll()
            try queue.finish()
            buffer = try Buffer(queue, byteCount: size)
        }
        state.heldBytes += size
        state.highWaterBytes = max(state.highWaterBytes, state.heldBytes)
        return buffer
    }

    /// Takes a buffer back.
    public func give(_ buffer: Buffer) {
        // What outlived its dry run must not reach a kernel.
        guard buffer.handle != nil || queue.isDryRun else { return }
        state.free.append(buffer)
    }

    /// Releases every unused buffer and forgets the high-water mark.
    public func removeAll() {
        state.heldBytes -= unusedBytes
        state.free.removeAll()
        state.highWaterBytes = state.heldBytes
    }

    /// The memory that `body` will take from an empty pool: it is run, but nothing is allocated, built, enqueued, or read.
    ///
    /// Since the same code takes and gives back the same sizes in the same order, the need is that of the real run.
    /// - Parameter body: Must release what it makes, and may not depend on values: whatever it reads is zero.
    /// - Returns: The most bytes allocated at once, and the largest single allocation.
    public func need(of body: () throws -> Void) rethrows -> (peakBytes: Int, largestAllocation: Int) {
        precondition(queue.dryRun == nil, "a dry run within a dry run")
        let dryRun = DryRun()
        let kept = state
        state = State()
        queue.dryRun = dryRun
        defer {
            state = kept
            queue.dryRun = nil
        }
        try body()
        return (dryRun.peakBytes, dryRun.largestAllocation)
    }
}
