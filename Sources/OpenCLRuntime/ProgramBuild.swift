// A program on its way from source to something a device runs: taken from the cache or compiled, by whoever needs it first or by a thread in
// the background.

internal import COpenCL
internal import Foundation
internal import Logging

/// What a program is made from.
struct ProgramSource: Sendable {
    /// The file's name in `Kernels/`, for messages.
    let file: String
    /// The whole text.
    let text: String
    /// The compiler's options.
    let options: String
}

/// A built program.
///
/// Safe to share: OpenCL's calls on programs are thread-safe, and so is the count of references.
final class Program: @unchecked Sendable {
    let handle: cl_program
    /// Whether its binary came from the cache, so that a fault in it may be the entry's.
    let isFromCache: Bool

    fileprivate init(_ handle: cl_program, isFromCache: Bool) {
        self.handle = handle
        self.isFromCache = isFromCache
    }

    deinit {
        clReleaseProgram(handle)
    }
}

/// Builds programs in one context, on any thread.
///
/// Safe to share for the same reason.
final class ProgramCompiler: @unchecked Sendable {
    private let context: cl_context
    private let device: Device
    private let cache: ProgramCache?
    private let logger: Logger

    /// A compiler for a queue's context.
    init(_ queue: CommandQueue, cache: ProgramCache?) {
        context = queue.context
        clRetainContext(context)
        device = queue.device
        self.cache = cache
        logger = queue.logger
    }

    deinit {
        clReleaseContext(context)
    }

    /// Takes a program from the cache or compiles it.
    ///
    /// - Parameter ignoringCache: Whether to compile in any case; what the cache has is then replaced.
    /// - Throws: `KernelError.buildFailed`, `OpenCLError`.
    func build(_ source: ProgramSource, ignoringCache: Bool = false) throws -> Program {
        let key = cache.map { _ in ProgramKey(source: source.text, options: source.options, device: device) }
        if !ignoringCache, let cache, let key, let binary = cache.binary(for: key) {
            if let program = load(binary, source) { return Program(program, isFromCache: true) }
            logger.debug("the driver refused a kept program", metadata: ["file": "\(cache.path(of: key))"])
        }
        let program = Program(try compile(source), isFromCache: false)
        logger.debug("built kernels", metadata: ["file": "\(source.file)", "options": "\(source.options)"])
        if let cache, let key, let binary = binary(of: program.handle) { cache.store(binary, for: key) }
        return program
    }

    private func compile(_ source: ProgramSource) throws -> cl_program {
        var status = CL_SUCCESS
        let created = source.text.withCString { pointer -> cl_program? in
            var string: UnsafePointer<CChar>? = pointer
            return clCreateProgramWithSource(context, 1, &string, nil, &status)
        }
        guard let program = created else {
            throw OpenCLError(OpenCLStatus(rawValue: status), "clCreateProgramWithSource", context: source.file)
        }
        var id: cl_device_id? = device.id
        status = clBuildProgram(program, 1, &id, source.options, nil, nil)
        guard status == CL_SUCCESS else {
            let log = buildLog(program)
            clReleaseProgram(program)
            throw KernelError.buildFailed(
                file: source.file,
                options: source.options,
                log: log.isEmpty ? OpenCLStatus(rawValue: status).description : log
            )
        }
        return program
    }

    /// The program of a binary; nil if the driver does not take it.
    private func load(_ binary: [UInt8], _ source: ProgramSource) -> cl_program? {
        binary.withUnsafeBufferPointer { bytes in
            var id: cl_device_id? = device.id
            var length = bytes.count
            var pointer = bytes.baseAddress
            var binaryStatus = CL_SUCCESS
            var status = CL_SUCCESS
            guard let program = clCreateProgramWithBinary(context, 1, &id, &length, &pointer, &binaryStatus, &status)
            else { return nil }
            guard status == CL_SUCCESS, binaryStatus == CL_SUCCESS,
                clBuildProgram(program, 1, &id, source.options, nil, nil) == CL_SUCCESS
            else {
                clReleaseProgram(program)
                return nil
            }
            return program
        }
    }

    /// What the driver gives for keeping; nil if it gives nothing.
    ///
    /// The context has one device, so there is one binary.
    private func binary(of program: cl_program) -> [UInt8]? {
        var size = 0
        let sizes = cl_program_info(CL_PROGRAM_BINARY_SIZES)
        guard clGetProgramInfo(program, sizes, MemoryLayout<Int>.size, &size, nil) == CL_SUCCESS, size > 0 else {
            return nil
        }
        var bytes = [UInt8](repeating: 0, count: size)
        let status = bytes.withUnsafeMutableBufferPointer { buffer in
            var pointer = buffer.baseAddress
            let pointerBytes = MemoryLayout<UnsafeMutablePointer<UInt8>?>.size
            return clGetProgramInfo(program, cl_program_info(CL_PROGRAM_BINARIES), pointerBytes, &pointer, nil)
        }
        return status == CL_SUCCESS ? bytes : nil
    }

    private func buildLog(_ program: cl_program) -> String {
        var size = 0
        let log = cl_program_build_info(CL_PROGRAM_BUILD_LOG)
        guard clGetProgramBuildInfo(program, device.id, log, 0, nil, &size) == CL_SUCCESS, size > 0 else {
            return ""
        }
        var bytes = [UInt8](repeating: 0, count: size)
        guard clGetProgramBuildInfo(program, device.id, log, size, &bytes, nil) == CL_SUCCESS else { return "" }
        return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
    }
}

/// The one build of a program, whoever does it; a failed one is done again by who next asks, as what it failed of may have passed.
///
/// Safe to share: its state is guarded by the condition.
final class ProgramBuild: @unchecked Sendable {
    private enum State {
        /// Nobody has begun.
        case waiting
        /// A thread is at it.
        case running
        case done(Program)
    }

    let source: ProgramSource
    private let compiler: ProgramCompiler
    private let condition = NSCondition()
    private var state = State.waiting

    init(_ source: ProgramSource, _ compiler: ProgramCompiler) {
        self.source = source
        self.compiler = compiler
    }

    /// The built program: builds it now unless another thread is at it, which is waited for.
    func program() throws -> Program {
        condition.lock()
        while case .running = state { condition.wait() }
        if case .done(let program) = state {
            condition.unlock()
            return program
        }
        state = .running
        condition.unlock()
        return try build()
    }

    /// Replaces a program from the cache that turned out to be faulty by a compiled one.
    func rebuilt() throws -> Program {
        let program = try compiler.build(source, ignoringCache: true)
        finish(.done(program))
        return program
    }

    /// Builds the program if nobody has begun.
    func begin() {
        condition.lock()
        guard case .waiting = state else { return condition.unlock() }
        state = .running
        condition.unlock()
        // Who needs the program builds it again, and is told why it cannot be built.
        _ = try? build()
    }

    /// Builds the program, which this thread has set out to do.
    private func build() throws -> Program {
        do {
            let program = try compiler.build(source)
            finish(.done(program))
            return program
        } catch {
            finish(.waiting)
            throw error
        }
    }

    private func finish(_ state: State) {
        condition.lock()
        self.state = state
        condition.broadcast()
        condition.unlock()
    }
}

/// Builds programs on threads in the background.
final class BackgroundBuilds {
    private let operations = OperationQueue()

    /// Starts no thread yet.
    ///
    /// - Parameter threads: How many programs are built at once.
    init(threads: Int) {
        operations.maxConcurrentOperationCount = threads
        operations.qualityOfService = .userInitiated
    }

    deinit {
        operations.cancelAllOperations()
        operations.waitUntilAllOperationsAreFinished()
    }

    /// Builds a program as soon as a thread is free, unless somebody needs it before and builds it.
    func add(_ build: ProgramBuild) {
        operations.addOperation { build.begin() }
    }
}
