// Building kernels from a directory and launching them; what goes wrong names the file, the line and the cause.

import Foundation
import OpenCLRuntime
import TestSupport
import Testing

/// A directory with kernel files, removed with the last reference.
private final class KernelDirectory {
    let path: String

    init(_ files: [String: String]) throws {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("kernels-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        path = url.path
        for (name, text) in files {
            try text.write(to: url.appendingPathComponent(name), atomically: true, encoding: .utf8)
        }
    }

    deinit {
        try? FileManager.default.removeItem(atPath: path)
    }
}

private let scale = """
    __kernel void scale(__global const float* x, __global float* y, const int n, const float factor, const ulong offset)
    {
        const size_t i = get_global_id(0);
        if (i < n) y[i + offset] = factor * x[i] + ADD;
    }
    """

@Suite(.requiresDevice)
@DeviceActor
struct KernelLibraryTests {
    private let queue: CommandQueue

    init() throws {
        queue = try CommandQueue(device: testDevice.get(), logger: testLogger)
    }

    /// Runs `body` with a library that reads a directory with these files.
    private func withLibrary(
        _ files: [String: String],
        common: String = "#define COMMON 1\n",
        _ body: (KernelLibrary, KernelDirectory) throws -> Void
    ) throws {
        let directory = try KernelDirectory(files.merging(["common.clh": common]) { own, _ in own })
        try body(KernelLibrary(queue, directory: directory.path), directory)
    }

    @Test func filesAreEmbedded() {
        #expect(KernelLibrary.embeddedFiles.contains("common.clh"))
        #expect(KernelLibrary.embeddedFiles.filter { $0.hasSuffix(".cl") }.count >= 7)
    }

    @Test func buildsAndRunsWithEveryKindOfArgument() throws {
        try withLibrary(["scale.cl": scale]) { library, _ in
            let kernel = try library.kernel("scale", file: "scale.cl", macros: ["ADD": 5], argumentCount: 5)
            let x = try Buffer(queue, byteCount: 12)
            let y = try Buffer(queue, byteCount: 20)
            try ([1, 2, 3] as [Float]).withUnsafeBytes { try queue.write($0, to: x) }
            try [Float](repeating: 0, count: 5).withUnsafeBytes { try queue.write($0, to: y) }
            // 3 work-items are rounded up to 4; the kernel's bounds test holds the fourth back.
            try kernel.enqueue([.buffer(x), .buffer(y), .int(3), .float(0.5), .ulong(1)], global: [3], local: [4])
            var values = [Float](repeating: 0, count: 5)
            try values.withUnsafeMutableBytes { try queue.read(y, into: $0) }
            #expect(values == [0, 5.5, 6, 6.5, 0])
        }
    }

    @Test func kernelIsBuiltOncePerMacros() throws {
        try withLibrary(["scale.cl": scale]) { library, _ in
            let first = try library.kernel("scale", file: "scale.cl", macros: ["ADD": 1], argumentCount: 5)
            #expect(try library.kernel("scale", file: "scale.cl", macros: ["ADD": 1], argumentCount: 5) === first)
            #expect(try library.kernel("scale", file: "scale.cl", macros: ["ADD": 2], argumentCount: 5) !== first)
        }
    }

    @Test func compilerErrorNamesFileAndLine() throws {
        let broken = "__kernel void broken(__global float* y)\n{\n    y[0] = undeclared;\n}\n"
        try withLibrary(["broken.cl": broken]) { library, _ in
            let error = try #require(throws: KernelError.self) {
                try library.kernel("broken", file: "broken.cl", macros: ["WG": 4], argumentCount: 1)
            }
            guard case .buildFailed(let file, let options, let log) = error else {
                Issue.record("\(error)")
                return
            }
            #expect(file == "broken.cl")
            #expect(options.contains("-DWG=4"))
            #expect(log.contains("undeclared"))
            #expect(log.contains("broken.cl:3"), "the line of the file, not of what was compiled")
            #expect(error.description.contains("Kernels/broken.cl") && error.description.contains(log))
        }
    }

    @Test func compilerErrorInTheCommonPartNamesThat() throws {
        try withLibrary(["fine.cl": scale], common: "\n#error \"no good\"\n") { library, _ in
            let error = try #require(throws: KernelError.self) {
                try library.kernel("scale", file: "fine.cl", macros: ["ADD": 0], argumentCount: 5)
            }
            #expect(error.description.contains("common.clh:2"), "\(error)")
        }
    }

    @Test func missingFileIsNamed() throws {
        try withLibrary([:]) { library, directory in
            let error = try #require(throws: KernelError.self) {
                try library.kernel("x", file: "absent.cl", macros: [:], argumentCount: 0)
            }
            #expect(error.description.contains("\(directory.path)/absent.cl"))
            #expect(error.description.contains("kernels.directory"))
        }
        #expect(throws: KernelError.unreadable(file: "absent.cl", reason: "it is not embedded in this binary")) {
            try KernelLibrary(queue).kernel("x", file: "absent.cl", macros: [:], argumentCount: 0)
        }
    }

    @Test func missingKernelIsNamed() throws {
        try withLibrary(["scale.cl": scale]) { library, _ in
            let error = try #require(throws: OpenCLError.self) {
                try library.kernel("resize", file: "scale.cl", macros: ["ADD": 0], argumentCount: 5)
            }
            #expect(error.description.contains("CL_INVALID_KERNEL_NAME"))
            #expect(error.description.contains("resize in Kernels/scale.cl"))
        }
    }

    @Test func otherNumberOfParametersIsRefused() throws {
        try withLibrary(["scale.cl": scale]) { library, _ in
            #expect(throws: KernelError.argumentCount(file: "scale.cl", kernel: "scale", expected: 3, found: 5)) {
                try library.kernel("scale", file: "scale.cl", macros: ["ADD": 0], argumentCount: 3)
            }
        }
    }

    @Test func geometryBeyondTheDeviceIsRefused() throws {
        try withLibrary(["scale.cl": scale]) { library, _ in
            let kernel = try library.kernel("scale", file: "scale.cl", macros: ["ADD": 0], argumentCount: 5)
            let x = try Buffer(queue, byteCount: 16)
            let y = try Buffer(queue, byteCount: 16)
            let arguments: [KernelArgument] = [.buffer(x), .buffer(y), .int(0), .float(0), .ulong(0)]
            let limit = queue.device.maxWorkGroupSize
            let error = try #require(throws: KernelError.self) {
                try kernel.enqueue(arguments, global: [limit * 2], local: [limit * 2])
            }
            #expect(error.description.contains("kernel scale"))
            #expect(error.description.contains("\(limit * 2) work-items, the device allows \(limit)"))
            let beyond = Int(Int32.max) + 1
            #expect(throws: KernelError.geometry(kernel: "scale", reason: "argument 2 is \(beyond), beyond 32 bits")) {
                try kernel.enqueue(
                    [.buffer(x), .buffer(y), .int(beyond), .float(0), .ulong(0)],
                    global: [1],
                    local: [1]
                )
            }
            // Nothing to do is no error.
            try kernel.enqueue(arguments, global: [0], local: [1])
            try queue.finish()
        }
    }

    @Test func multipliesWithCLBlast() throws {
        let (m, n, k) = (3, 5, 2)
        let x = HostTensor.random([m, k], seed: 1)
        let w = HostTensor.random([n, k], seed: 2)
        let buffers = try [m * k, n * k, m * n].map { try Buffer(queue, byteCount: $0 * 4) }
        try x.values.withUnsafeBytes { try queue.write($0, to: buffers[0]) }
        try w.values.withUnsafeBytes { try queue.write($0, to: buffers[1]) }
        try queue.sgemm(x: buffers[0], w: buffers[1], y: buffers[2], m: m, n: n, k: k)
        var y = [Float](repeating: 0, count: m * n)
        try y.withUnsafeMutableBytes { try queue.read(buffers[2], into: $0) }
        let expected = (0..<m * n).map { index in
            (0..<k).reduce(0.0) { $0 + Double(x.values[index / n * k + $1]) * Double(w.values[index % n * k + $1]) }
        }
        expectClose(y, expected, Tolerance(nmse: 1e-13, peak: 1e-6))
        #expect(throws: OpenCLError.self) {
            try queue.sgemm(x: buffers[0], w: buffers[1], y: buffers[2], m: m, n: n, k: 1000)
        }
    }
}
