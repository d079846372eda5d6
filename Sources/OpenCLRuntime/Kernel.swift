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

/// What `clCreateKernel` returns, together with the program it is of.
final class KernelHandle {
    let kernel: cl_kernel
    private let program: Program

    /// - Throws: `KernelError.argumentCount`, `OpenCLError`.
    init(_ name: String, of program: Program, _ source: ProgramSource, argumentCount: Int) throws {
        var status = CL_SUCCESS
        guard let kernel = clCreateKernel(program.handle, name, &status) else {
            throw OpenCLError(
                OpenCLStatus(rawValue: status),
                "clCreateKernel",
                context: "\(name) in Kernels/\(source.file) with \(source.options)"
            )
        }
        self.kernel = kernel
        self.program = program
        var count: cl_uint = 0
        try check(clGetKernelInfo(kernel, cl_kernel_info(CL_KERNEL_NUM_ARGS), 4, &count, nil), "clGetKernelInfo")
        guard Int(count) == argumentCount else {
            throw KernelError.argumentCount(
                file: source.file,
                kernel: name,
                expected: argumentCount,
                found: Int(count)
            )
        }
    }

    deinit {
        clReleaseKernel(kernel)
    }
}

/// A kernel, built or still being built.
public final class Kernel {
    private let name: String
    private let queue: CommandQueue
    private let make: () throws -> KernelHandle
    private var handle: KernelHandle?
    /// The value each parameter was last set to.
    private var parameters: [Parameter] = []

    /// A value as OpenCL has it; buffers by their number, as memory of a released one may come again under the same handle.
    private enum Parameter: Equatable {
        case unset
        case buffer(Int)
        case int(Int32)
        case ulong(UInt64)
        case float(UInt32)
    }

    /// - Parameter make: Builds the kernel, or waits for who does; called until it succeeds.
    init(name: String, queue: CommandQueue, make: @escaping () throws -> KernelHandle) {
        self.name = name
        self.queue = queue
        self.make = make
    }

    /// A kernel that is never run, for the dry run under way: none has to be built to count memory.
    public convenience init(dryRunOf name: String, on queue: CommandQueue) {
        precondition(queue.isDryRun, "\(name) outside a dry run")
        self.init(name: name, queue: queue) { preconditionFailure("\(name) is launched after its dry run") }
    }

    /// Waits until the kernel is built.
    @discardableResult
    func prepare() throws -> cl_kernel {
        if let handle { return handle.kernel }
        let made = try make()
        handle = made
        return made.kernel
    }

    /// Enqueues the kernel, or lets the launch wait in order for it and others that are still being built.
    ///
    /// The corresponding OpenCL functions are `clSetKernelArg` and `clEnqueueNDRangeKernel`.
    ///
    /// - Parameters:
    ///   - arguments: In the order of the kernel's parameters.
    ///   - global: Work-items in each dimension; rounded up to multiples of `local`.
    ///   - local: Work-group size; nil leaves it to the implementation.
    /// - Throws: `KernelError.geometry` beyond the device's limits, `OpenCLError`.
    public func enqueue(_ arguments: [KernelArgument], global: [Int], local: [Int]? = nil) throws {
        if queue.isDryRun { return }
        for (index, argument) in arguments.enumerated() {
            if case .int(let value) = argument, Int32(exactly: value) == nil {
                throw KernelError.geometry(kernel: name, reason: "argument \(index) is \(value), beyond 32 bits")
            }
        }
        if global.contains(0) { return }
        var sizes = global
        if let local {
            let groups = zip(global, local).map { ($0 + $1 - 1) / $1 }
            try checkGeometry(local, groups)
            sizes = zip(groups, local).map { $0 * $1 }
        }
        if let handle, queue.isUpToDate {
            try launch(handle.kernel, arguments, sizes, local)
        } else {
            queue.perform { [self] in try launch(prepare(), arguments, sizes, local) }
        }
    }

    private func launch(_ kernel: cl_kernel, _ arguments: [KernelArgument], _ sizes: [Int], _ local: [Int]?) throws {
        if parameters.count != arguments.count {
            parameters = [Parameter](repeating: .unset, count: arguments.count)
        }
        for (index, argument) in arguments.enumerated() {
            let parameter: Parameter
            switch argument {
            case .buffer(let buffer): parameter = .buffer(buffer.number)
            case .int(let value): parameter = .int(Int32(truncatingIfNeeded: value))
            case .ulong(let value): parameter = .ulong(UInt64(value))
            case .float(let value): parameter = .float(value.bitPattern)
            }
            if parameters[index] == parameter { continue }
            parameters[index] = .unset
            let status: cl_int
            switch argument {
            case .buffer(let buffer):
                var memory: cl_mem? = buffer.handle
                status = clSetKernelArg(kernel, cl_uint(index), MemoryLayout<cl_mem?>.size, &memory)
            case .int(let value):
                var int = Int32(truncatingIfNeeded: value)
                status = clSetKernelArg(kernel, cl_uint(index), 4, &int)
            case .ulong(let value):
                var ulong = cl_ulong(value)
                status = clSetKernelArg(kernel, cl_uint(index), 8, &ulong)
            case .float(var value):
                status = clSetKernelArg(kernel, cl_uint(index), 4, &value)
            }
            try check(status, "clSetKernelArg", "argument \(index) of \(name)")
            parameters[index] = parameter
        }
        let status = clEnqueueNDRangeKernel(
            queue.handle,
            kernel,
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
        queue.launchCount += 1
    }

    private func checkGeometry(_ local: [Int], _ groups: [Int]) throws {
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
        if let limit = queue.outerWorkGroupLimit, groups.dropFirst().contains(where: { $0 > limit }) {
            throw KernelError.geometry(
                kernel: name,
                reason: "\(groups) work-groups, at most \(limit) are allowed in the dimensions beyond the first"
            )
        }
    }
}
