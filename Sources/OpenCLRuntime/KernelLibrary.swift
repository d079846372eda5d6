// From kernel files to kernels: sources embedded in the binary or read from a directory, built once per file and macros.

internal import CKernels
internal import COpenCL
internal import Foundation
internal import Logging

/// A kernel could not be found or built.
public enum KernelError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The kernel directory lacks a file.
    case unreadable(file: String, reason: String)
    /// The device's compiler refused the source; `log` is what it said.
    case buildFailed(file: String, options: String, log: String)
    /// The `.cl` file and its Swift caller disagree about the parameters.
    case argumentCount(file: String, kernel: String, expected: Int, found: Int)
    /// A launch is beyond the device's limits.
    case geometry(kernel: String, reason: String)

    /// What failed, with the compiler's log on lines of its own.
    public var description: String {
        switch self {
        case .unreadable(let file, let reason):
            "kernel file \(file) cannot be read: \(reason). Check kernels.directory in the configuration"
        case .buildFailed(let file, let options, let log):
            "the OpenCL compiler refused Kernels/\(file) (options: \(options)):\n\(log)"
        case .argumentCount(let file, let kernel, let expected, let found):
            """
            kernel \(kernel) in Kernels/\(file) has \(found) parameters where Sources/TensorOps passes \(expected): \
            the files in kernels.directory belong to another version
            """
        case .geometry(let kernel, let reason): "kernel \(kernel) cannot be launched: \(reason)"
        }
    }
}

/// Builds programs and hands out kernels, each once.
public final class KernelLibrary {
    private let queue: CommandQueue
    private let directory: String?
    private var programs: [String: cl_program] = [:]
    private var kernels: [String: Kernel] = [:]
    private var sources: [String: String] = [:]

    /// A library for one queue.
    ///
    /// - Parameter directory: A directory with `.cl` files to read instead of the embedded ones.
    public init(_ queue: CommandQueue, directory: String? = nil) {
        self.queue = queue
        self.directory = directory
    }

    deinit {
        kernels.removeAll()
        for program in programs.values { clReleaseProgram(program) }
    }

    /// The names of the embedded kernel files.
    public static var embeddedFiles: [String] {
        (0..<diffused_kernel_file_count()).map { String(cString: diffused_kernel_file_at($0).name) }
    }

    /// The kernel of a file, built with macros.
    ///
    /// - Parameters:
    ///   - name: The kernel function.
    ///   - file: The file in `Kernels/`.
    ///   - macros: Macro definitions; they are part of what identifies the program.
    ///   - argumentCount: How many arguments the caller is going to pass; checked against the built kernel.
    /// - Throws: `KernelError` or `OpenCLError`.
    public func kernel(
        _ name: String,
        file: String,
        macros: [String: Int],
        argumentCount: Int
    ) throws -> Kernel {
        let options = macros.map { "-D\($0.key)=\($0.value)" }.sorted().joined(separator: " ")
        let key = "\(file) \(name) \(options)"
        if let kernel = kernels[key] { return kernel }
        let program = try program(file: file, options: options)
        var status = CL_SUCCESS
        guard let handle = clCreateKernel(program, name, &status) else {
            throw OpenCLError(
                OpenCLStatus(rawValue: status),
                "clCreateKernel",
                context: "\(name) in Kernels/\(file) with \(options)"
            )
        }
        let kernel = Kernel(handle, name: name, queue: queue)
        var count: cl_uint = 0
        try check(clGetKernelInfo(handle, cl_kernel_info(CL_KERNEL_NUM_ARGS), 4, &count, nil), "clGetKernelInfo")
        guard Int(count) == argumentCount else {
            throw KernelError.argumentCount(file: file, kernel: name, expected: argumentCount, found: Int(count))
        }
        kernels[key] = kernel
        return kernel
    }

    private func program(file: String, options: String) throws -> cl_program {
        let key = "\(file) \(options)"
        if let program = programs[key] { return program }
        // #line keeps the numbers of the compiler's messages those of the file.
        let text =
            "#line 1 \"common.clh\"\n" + (try source("common.clh")) + "\n#line 1 \"\(file)\"\n" + (try source(file))
        let allOptions = "-cl-std=CL1.2 -cl-mad-enable -cl-no-signed-zeros \(options)"
        var status = CL_SUCCESS
        let created = text.withCString { pointer -> cl_program? in
            var string: UnsafePointer<CChar>? = pointer
            return clCreateProgramWithSource(queue.context, 1, &string, nil, &status)
        }
        guard let program = created else {
            throw OpenCLError(OpenCLStatus(rawValue: status), "clCreateProgramWithSource", context: file)
        }
        var id: cl_device_id? = queue.device.id
        status = clBuildProgram(program, 1, &id, allOptions, nil, nil)
        guard status == CL_SUCCESS else {
            let log = buildLog(program)
            clReleaseProgram(program)
            throw KernelError.buildFailed(
                file: file,
                options: allOptions,
                log: log.isEmpty ? OpenCLStatus(rawValue: status).description : log
            )
        }
        queue.logger.debug("built kernels", metadata: ["file": "\(file)", "options": "\(options)"])
        programs[key] = program
        return program
    }

    private func buildLog(_ program: cl_program) -> String {
        var size = 0
        let log = cl_program_build_info(CL_PROGRAM_BUILD_LOG)
        guard clGetProgramBuildInfo(program, queue.device.id, log, 0, nil, &size) == CL_SUCCESS, size > 0 else {
            return ""
        }
        var bytes = [UInt8](repeating: 0, count: size)
        guard clGetProgramBuildInfo(program, queue.device.id, log, size, &bytes, nil) == CL_SUCCESS else { return "" }
        return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
    }

    private func source(_ file: String) throws -> String {
        if let text = sources[file] { return text }
        let text: String
        if let directory {
            let path = directory + "/" + file
            // Foundation's errors tell a user nothing; the system's do.
            guard let file = fopen(path, "r") else {
                throw KernelError.unreadable(file: path, reason: String(cString: strerror(errno)))
            }
            fclose(file)
            do {
                text = try String(contentsOfFile: path, encoding: .utf8)
            } catch {
                throw KernelError.unreadable(file: path, reason: "it is not a file of UTF-8 text")
            }
        } else {
            let embedded = (0..<diffused_kernel_file_count()).lazy.map { diffused_kernel_file_at($0) }
            guard let match = embedded.first(where: { String(cString: $0.name) == file }) else {
                throw KernelError.unreadable(file: file, reason: "it is not embedded in this binary")
            }
            text = String(cString: match.source)
        }
        sources[file] = text
        return text
    }
}
