// Launches that wait for kernels built in the background: everything happens in the order it was asked for.

import Foundation
import TestSupport
import Testing

@testable import OpenCLRuntime

private let text = """
    __kernel void scale(__global const float* x, __global float* y, const float factor)
    {
        y[get_global_id(0)] = factor * x[get_global_id(0)] + ADD;
    }
    """

@Suite(.requiresDevice)
@DeviceActor
struct LaunchTests {
    private let queue: CommandQueue

    init() throws {
        queue = try CommandQueue(device: testDevice.get(), logger: testLogger)
    }

    private func withLibrary(_ text: String = text, _ body: (KernelLibrary) throws -> Void) throws {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("kernels-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: url) }
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        try "".write(to: url.appendingPathComponent("common.clh"), atomically: true, encoding: .utf8)
        try text.write(to: url.appendingPathComponent("scale.cl"), atomically: true, encoding: .utf8)
        try body(KernelLibrary(queue, directory: url.path, backgroundThreads: 2))
    }

    private func kernel(_ library: KernelLibrary, adding: Int, argumentCount: Int = 3) throws -> Kernel {
        try library.kernel("scale", file: "scale.cl", macros: ["ADD": adding], argumentCount: argumentCount)
    }

    private func floats(_ buffer: Buffer) throws -> [Float] {
        var values = [Float](repeating: 0, count: 4)
        try values.withUnsafeMutableBytes { try queue.read(buffer, into: $0) }
        return values
    }

    @Test func commandsKeepTheirOrder() throws {
        try withLibrary { library in
            let x = try Buffer(queue, byteCount: 16)
            let y = try Buffer(queue, byteCount: 16)
            // Sizes beyond what a waiting write copies are written all the same.
            let large = try Buffer(queue, byteCount: 4 << 20)
            try ([1, 2, 3, 4] as [Float]).withUnsafeBytes { try queue.write($0, to: x) }
            try kernel(library, adding: 1).enqueue([.buffer(x), .buffer(y), .float(2)], global: [4], local: [1])
            #expect(!queue.isUpToDate)
            try kernel(library, adding: 2).enqueue([.buffer(y), .buffer(x), .float(10)], global: [4], local: [1])
            // Behind both: the first two of what the first kernel wrote, then a write over them.
            try queue.copyRows(
                from: y,
                to: large,
                destinationOffset: 0,
                rowBytes: 8,
                rows: 1,
                sourcePitch: 8,
                destinationPitch: 8
            )
            try ([100, 200, 300, 400] as [Float]).withUnsafeBytes { try queue.write($0, to: y) }
            #expect(queue.launchCount == 0)
            #expect(try floats(x) == [32, 52, 72, 92])
            #expect(queue.isUpToDate)
            #expect(queue.launchCount == 2)
            #expect(try floats(y) == [100, 200, 300, 400])
            #expect(try Array(floats(large)[..<2]) == [3, 5])
        }
    }

    @Test func largeWriteWaitsForTheKernels() throws {
        try withLibrary { library in
            let (x, y) = (try Buffer(queue, byteCount: 4 << 20), try Buffer(queue, byteCount: 16))
            try [Float](repeating: 1, count: 1 << 20).withUnsafeBytes { try queue.write($0, to: x) }
            try kernel(library, adding: 0).enqueue([.buffer(x), .buffer(y), .float(3)], global: [4], local: [1])
            try [Float](repeating: 9, count: 1 << 20).withUnsafeBytes { try queue.write($0, to: x) }
            #expect(queue.isUpToDate)
            #expect(try floats(y) == [3, 3, 3, 3])
        }
    }

    @Test func failedBuildIsReportedByWhoWaits() throws {
        try withLibrary("__kernel void scale(__global float* y) { y[0] = undeclared; }") { library in
            let buffer = try Buffer(queue, byteCount: 16)
            let broken = try kernel(library, adding: 1)
            for _ in 0..<2 {
                try broken.enqueue([.buffer(buffer), .buffer(buffer), .float(1)], global: [4], local: [1])
                let error = try #require(throws: OpenCLError.self) { try queue.finish() }
                #expect(error.status == .buildProgramFailure)
                #expect(error.description.contains("Kernels/scale.cl") && error.description.contains("undeclared"))
                #expect(queue.isUpToDate, "nothing waits for ever")
            }
        }
        try withLibrary { library in
            let buffer = try Buffer(queue, byteCount: 16)
            let other = try kernel(library, adding: 1, argumentCount: 2)
            try other.enqueue([.buffer(buffer), .float(1)], global: [4], local: [1])
            let error = try #require(throws: OpenCLError.self) { try queue.finish() }
            #expect(error.description.contains("has 3 parameters where Sources/TensorOps passes 2"))
        }
    }

    @Test func abandonedLaunchesLetTheQueueGo() throws {
        weak var abandoned: CommandQueue?
        try {
            let queue = try CommandQueue(device: testDevice.get(), logger: testLogger)
            abandoned = queue
            let library = KernelLibrary(queue, backgroundThreads: 1)
            let buffer = try Buffer(queue, byteCount: 16)
            let kernel = try library.kernel("image_to_rgb8", file: "image_conversion.cl", macros: [:], argumentCount: 3)
            try kernel.enqueue([.buffer(buffer), .buffer(buffer), .ulong(0)], global: [1], local: [1])
        }()
        #expect(abandoned == nil)
    }

    @Test func parametersFollowTheirBuffers() throws {
        try withLibrary { library in
            let scale = try kernel(library, adding: 0)
            let y = try Buffer(queue, byteCount: 16)
            // A released buffer's memory, and its handle, may come again.
            for value in 1...20 {
                let x = try Buffer(queue, byteCount: 16)
                try [Float](repeating: Float(value), count: 4).withUnsafeBytes { try queue.write($0, to: x) }
                try scale.enqueue([.buffer(x), .buffer(y), .float(2)], global: [4], local: [1])
                #expect(try floats(y) == [Float](repeating: Float(2 * value), count: 4))
            }
        }
    }

    @Test func hostMemoryIsRead() throws {
        try withLibrary { library in
            let y = try Buffer(queue, byteCount: 16)
            let before = queue.allocatedBytes
            try ([1, 2, 3, 4, 5] as [Float]).withUnsafeBytes { values in
                let x = try Buffer(queue, reading: UnsafeRawBufferPointer(rebasing: values[4...]))
                #expect(queue.allocatedBytes == before)
                try kernel(library, adding: 1).enqueue([.buffer(x), .buffer(y), .float(1)], global: [4], local: [1])
                try queue.finish()
            }
            #expect(queue.allocatedBytes == before)
            #expect(try floats(y) == [3, 4, 5, 6])
        }
    }
}
