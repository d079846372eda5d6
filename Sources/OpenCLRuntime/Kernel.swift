// A kernel and its launch: typed arguments, geometry checked against the device before it is enqueued.

internal import COpenCL

/// One argument of a kernel launch.
public enum KernelArgument {
    /// Global memory.
    case buffer(Buffer)
    /// `const int`
    case int(Int)
    /// `const ulong`
    case ulong(Int)
    /// `const float`
    case float(Float)
}

/// A built kernel.
public final class Kernel {
    private let handle: cl_kernel
    private let name: String
    private let queue: CommandQueue

    init(_ handle: cl_kernel, name: String, queue: CommandQueue) {
        self.handle = handle
        self.name = name
        self.queue = queue
    }

    deinit {
        clReleaseKernel(handle)
    }

    /// Enqueues the kernel.
    ///
    /// The corresponding OpenCL functions are `clSetKernelArg` and `clEnqueueNDRangeKernel`.
    ///
    /// - Parameters:
    ///   - arguments: In the order of the kernel's parameters.
    ///   - global: Work-items in each dimension; rounded up to multiples of `local`.
    ///   - local: Work-group size; nil leaves it to the implementation.
    /// - Throws: `KernelError.geometry` beyond the device's limits, `OpenCLError`.
    public func enqueue(_ arguments: [KernelArgument], global: [Int], local: [Int]? = nil) throws {
        for (index, argument) in arguments.enumerated() {
            let status: cl_int
            switch argument {
            case .buffer(let buffer):
                var memory: cl_mem? = buffer.handle
                status = clSetKernelArg(handle, cl_uint(index), MemoryLayout<cl_mem?>.size, &memory)
            case .int(let value):
                guard var int = Int32(exactly: value) else {
                    throw KernelError.geometry(kernel: name, reason: "argument \(index) is \(value), beyond 32 bits")
                }
                status = clSetKernelArg(handle, cl_uint(index), 4, &int)
            case .ulong(let value):
                var ulong = cl_ulong(value)
                status = clSetKernelArg(handle, cl_uint(index), 8, &ulong)
            case .float(var value):
                status = clSetKernelArg(handle, cl_uint(index), 4, &value)
            }
            try check(status, "clSetKernelArg", "argument \(index) of \(name)")
        }
        if global.contains(0) { return }
        var sizes = global
        if let local {
            try checkGeometry(local)
            for i in sizes.indices { sizes[i] = (sizes[i] + local[i] - 1) / local[i] * local[i] }
        }
        let status = clEnqueueNDRangeKernel(
            queue.handle,
            handle,
            cl_uint(sizes.count),
            nil,
            sizes,
            local,
            0,
            nil,
            nil
        )
        try check(
            status,
            "clEnqueueNDRangeKernel",
            "\(name), global \(sizes), local \(local.map { "\($0)" } ?? "automatic")"
        )
    }

    private func checkGeometry(_ local: [Int]) throws {
        let device = queue.device
        let total = local.reduce(1, *)
        if total > device.maxWorkGroupSize {
            throw KernelError.geometry(
                kernel: name,
                reason: "a work-group of \(total) work-items, the device allows \(device.maxWorkGroupSize)"
            )
        }
        for (size, limit) in zip(local, device.maxWorkItemSizes) where size > limit {
            throw KernelError.geometry(
                kernel: name,
                reason: "work-group size \(local), the device allows \(device.maxWorkItemSizes)"
            )
        }
    }
}
