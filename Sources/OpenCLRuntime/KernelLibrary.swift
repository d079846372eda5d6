// From kernel files to kernels: sources embedded in the binary or read from a directory, built once per file and macros.

internal import CKernels
internal import COpenCL
internal import Foundation

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
    private let cache: ProgramCache?
    private let compiler: ProgramCompiler
    private let background: BackgroundBuilds?
    private var builds: [String: ProgramBuild] = [:]
    private var kernels: [String: Kernel] = [:]
    private var sources: [String: String] = [:]

    /// A library for one queue.
    ///
    /// - Parameters:
    ///   - directory: A directory with `.cl` files to read instead of the embedded ones.
    ///   - cache: Where built programs are kept; not used with PoCL, which keeps them by itself and would compile once more to hand them out.
    ///   - backgroundThreads: Threads that build programs. With any, `kernel` returns before its program is built, launches wait in order, and a
    ///     failed build is reported by whatever next waits for the device. With none, `kernel` builds.
    public init(
        _ queue: CommandQueue,
        directory: String? = nil,
        cache: ProgramCache? = nil,
        backgroundThreads: Int = 0
    ) {
        self.queue = queue
        self.directory = directory
        self.cache = cache
        compiler = ProgramCompiler(queue, cache: queue.device.isPoCL ? nil : cache)
        background = backgroundThreads > 0 ? BackgroundBuilds(threads: backgroundThreads) : nil
    }

    /// A library of the same files and cache for another queue, which builds when asked.
    public func anew(for queue: CommandQueue) -> KernelLibrary {
        KernelLibrary(queue, directory: directory, cache: cache)
    }

    deinit {
        queue.abandonWaiting()
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
        let build = try build(file: file, options: options)
        let kernel = Kernel(name: name, queue: queue) {
            try KernelLibrary.handle(name, of: build, argumentCount: argumentCount)
        }
        if background == nil { try kernel.prepare() }
        kernels[key] = kernel
        return kernel
    }

    private func build(file: String, options: String) throws -> ProgramBuild {
        let key = "\(file) \(options)"
        if let build = builds[key] { return build }
        // #line keeps the numbers of the compiler's messages those of the file.
        let files = ["common.clh"] + (file.hasSuffix("_mma.cl") ? ["mma.clh"] : []) + [file]
        let text = try files.map { "#line 1 \"\($0)\"\n" + (try source($0)) }.joined(separator: "\n")
        let allOptions = "-cl-std=CL1.2 -cl-mad-enable -cl-no-signed-zeros \(options)"
        let build = ProgramBuild(ProgramSource(file: file, text: text, options: allOptions), compiler)
        builds[key] = build
        background?.add(build)
        return build
    }

    /// Creates a kernel and checks its parameters; a program from the cache that fails at this is compiled.
    static func handle(_ name: String, of build: ProgramBuild, argumentCount: Int) throws -> KernelHandle {
        let program = try build.program()
        do {
            return try KernelHandle(name, of: program, build.source, argumentCount: argumentCount)
        } catch  where program.isFromCache {
            return try KernelHandle(name, of: build.rebuilt(), build.source, argumentCount: argumentCount)
        }
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
