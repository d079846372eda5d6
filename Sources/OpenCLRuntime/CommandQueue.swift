// A context with its one in-order queue on one device: the door through which buffers are written and read and kernels enqueued.
// Not Sendable: `clSetKernelArg` is not thread-safe, so all that belongs to a queue is used from one executor.

internal import COpenCL
public import Logging

/// How much memory may be allocated.
public struct MemoryLimits: Sendable, Equatable {
    /// Bytes in all.
    public var totalBytes: Int
    /// Bytes in one allocation.
    public var allocationBytes: Int

    /// Limits from their parts.
    public init(totalBytes: Int, allocationBytes: Int) {
        self.totalBytes = totalBytes
        self.allocationBytes = allocationBytes
    }
}

/// An in-order command queue and its context on one device.
public final class CommandQueue {
    /// The device.
    public let device: Device
    let context: cl_context
    let handle: cl_command_queue
    /// Where the runtime and the operators log.
    public let logger: Logger
    /// Bytes in all live buffers of this queue's context.
    public internal(set) var allocatedBytes = 0
    /// The most bytes that were ever live at once.
    public internal(set) var peakBytes = 0
    /// The device's memory; less of it makes any device a small one.
    public var limits: MemoryLimits
    /// The most work-groups in a launch's second and third dimension; nil for as many as fit the numbers.
    public var outerWorkGroupLimit: Int?
    /// Set while `BufferPool.need` counts: then nothing reaches the device.
    var dryRun: DryRun?
    /// Whether allocations are only counted and commands not enqueued.
    public var isDryRun: Bool { dryRun != nil }

    /// Kernels enqueued so far.
    public internal(set) var launchCount = 0
    /// Commands that wait, in order, for kernels that are still being built.
    fileprivate var waiting: [() throws -> Void] = []
    fileprivate var buffersMade = 0

    /// Creates a context and a queue.
    ///
    /// The corresponding OpenCL functions are `clCreateContext` and `clCreateCommandQueue`.
    public init(device: Device, logger: Logger) throws(OpenCLError) {
        self.device = device
        self.logger = logger
        limits = MemoryLimits(totalBytes: device.globalMemoryBytes, allocationBytes: device.maxAllocationBytes)
        var status = CL_SUCCESS
        var id: cl_device_id? = device.id
        guard let context = clCreateContext(nil, 1, &id, nil, nil, &status) else {
            throw OpenCLError(OpenCLStatus(rawValue: status), "clCreateContext", context: device.name)
        }
        guard let queue = clCreateCommandQueue(context, device.id, 0, &status) else {
            clReleaseContext(context)
            throw OpenCLError(OpenCLStatus(rawValue: status), "clCreateCommandQueue", context: device.name)
        }
        self.context = context
        handle = queue
    }

    deinit {
        clFinish(handle)
        clReleaseCommandQueue(handle)
        clReleaseContext(context)
    }

    /// Blocks until everything enqueued has run.
    ///
    /// The corresponding OpenCL function is `clFinish`.
    public func finish() throws(OpenCLError) {
        if isDryRun { return }
        try enqueueWaiting()
        try check(clFinish(handle), "clFinish")
    }

    /// Copies host memory into a buffer and waits.
    ///
    /// The corresponding OpenCL function is `clEnqueueWriteBuffer`.
    public func write(_ bytes: UnsafeRawBufferPointer, to buffer: Buffer, at offset: Int = 0) throws(OpenCLError) {
        precondition(offset + bytes.count <= buffer.byteCount, "write of \(bytes.count) bytes beyond the buffer")
        guard let base = bytes.baseAddress, !bytes.isEmpty, !isDryRun else { return }
        if !isUpToDate, bytes.count <= CommandQueue.largestWaitingWrite {
            let copy = [UInt8](bytes)
            return perform { [unowned self] in try copy.withUnsafeBytes { try write($0, to: buffer, at: offset) } }
        }
        try enqueueWaiting()
        try check(
            clEnqueueWriteBuffer(handle, buffer.handle, cl_bool(CL_TRUE), offset, bytes.count, base, 0, nil, nil),
            "clEnqueueWriteBuffer",
            "\(bytes.count) bytes"
        )
    }

    /// Copies a buffer into host memory and waits.
    ///
    /// The corresponding OpenCL function is `clEnqueueReadBuffer`.
    public func read(_ buffer: Buffer, into bytes: UnsafeMutableRawBufferPointer) throws(OpenCLError) {
        precondition(bytes.count <= buffer.byteCount, "read of \(bytes.count) bytes beyond the buffer")
        guard let base = bytes.baseAddress, !bytes.isEmpty, !isDryRun else { return }
        try enqueueWaiting()
        try check(
            clEnqueueReadBuffer(handle, buffer.handle, cl_bool(CL_TRUE), 0, bytes.count, base, 0, nil, nil),
            "clEnqueueReadBuffer",
            "\(bytes.count) bytes"
        )
    }

    /// Copies `rows` runs of `rowBytes` bytes between buffers with different row pitches.
    ///
    /// The corresponding OpenCL function is `clEnqueueCopyBufferRect`.
    public func copyRows(
        from source: Buffer,
        sourceOffset: Int = 0,
        to destination: Buffer,
        destinationOffset: Int,
        rowBytes: Int,
        rows: Int,
        sourcePitch: Int,
        destinationPitch: Int
    ) throws(OpenCLError) {
        if isDryRun { return }
        if !isUpToDate {
            return perform { [unowned self] in
                try copyRows(
                    from: source,
                    sourceOffset: sourceOffset,
                    to: destination,
                    destinationOffset: destinationOffset,
                    rowBytes: rowBytes,
                    rows: rows,
                    sourcePitch: sourcePitch,
                    destinationPitch: destinationPitch
                )
            }
        }
        var sourceOrigin = [sourceOffset, 0, 0]
        var destinationOrigin = [destinationOffset, 0, 0]
        var region = [rowBytes, rows, 1]
        try check(
            clEnqueueCopyBufferRect(
                handle,
                source.handle,
                destination.handle,
                &sourceOrigin,
                &destinationOrigin,
                &region,
                sourcePitch,
                0,
                destinationPitch,
                0,
                0,
                nil,
                nil
            ),
            "clEnqueueCopyBufferRect",
            "\(rows) rows of \(rowBytes) bytes"
        )
    }

    /// Copies bytes from one buffer to another.
    ///
    /// The corresponding OpenCL function is `clEnqueueCopyBuffer`.
    public func copy(
        from source: Buffer,
        at sourceOffset: Int,
        to destination: Buffer,
        at destinationOffset: Int,
        byteCount: Int
    ) throws(OpenCLError) {
        precondition(sourceOffset + byteCount <= source.byteCount, "copy of \(byteCount) bytes from beyond the buffer")
        precondition(
            destinationOffset + byteCount <= destination.byteCount,
            "copy of \(byteCount) bytes beyond the buffer"
        )
        if isDryRun || byteCount == 0 { return }
        if !isUpToDate {
            return perform { [unowned self] in
                try copy(from: source, at: sourceOffset, to: destination, at: destinationOffset, byteCount: byteCount)
            }
        }
        try check(
            clEnqueueCopyBuffer(
                handle,
                source.handle,
                destination.handle,
                sourceOffset,
                destinationOffset,
                byteCount,
                0,
                nil,
                nil
            ),
            "clEnqueueCopyBuffer",
            "\(byteCount) bytes"
        )
    }
}

// MARK: Commands that wait for kernels

extension CommandQueue {
    /// Larger writes wait for the kernels rather than keep a copy.
    fileprivate static let largestWaitingWrite = 1 << 20

    /// Whether everything so far has been enqueued, so that the next command may be.
    var isUpToDate: Bool { waiting.isEmpty }

    /// Lets a command wait behind those that wait already.
    func perform(_ command: @escaping () throws -> Void) {
        waiting.append(command)
    }

    /// Enqueues what waits, in order; waits for the kernels that are still being built.
    ///
    /// After a failure nothing waits any more.
    func enqueueWaiting() throws(OpenCLError) {
        if waiting.isEmpty { return }
        let commands = waiting
        waiting = []
        do {
            for command in commands { try command() }
        } catch let error as OpenCLError {
            throw error
        } catch {
            throw OpenCLError(.buildProgramFailure, "clBuildProgram", context: "\(error)")
        }
    }

    /// Forgets what waits; the commands refer to the queue, which would never go otherwise.
    func abandonWaiting() {
        waiting = []
    }

    func nextBufferNumber() -> Int {
        buffersMade += 1
        return buffersMade
    }
}
