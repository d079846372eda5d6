// Buffers, the pool and transfers.

import Foundation
import TestSupport
import Testing

@testable import OpenCLRuntime

@DeviceActor
private func makeQueue() throws -> CommandQueue {
    try CommandQueue(device: testDevice.get(), logger: testLogger)
}

@DeviceActor
private func bytes(of buffer: Buffer, _ queue: CommandQueue, count: Int) throws -> [UInt8] {
    var values = [UInt8](repeating: 0, count: count)
    try values.withUnsafeMutableBytes { try queue.read(buffer, into: $0) }
    return values
}

@Suite(.requiresDevice)
@DeviceActor
struct BufferTests {
    @Test(arguments: [0, 1, 16, 255, 65_537])
    func roundTrip(_ count: Int) throws {
        let queue = try makeQueue()
        let buffer = try Buffer(queue, byteCount: count)
        let values = (0..<count).map { UInt8(truncatingIfNeeded: $0 * 7) }
        try values.withUnsafeBytes { try queue.write($0, to: buffer) }
        #expect(try bytes(of: buffer, queue, count: count) == values)
    }

    /// Bytes of this process in memory.
    private func residentBytes() throws -> Int {
        let pages = try String(contentsOfFile: "/proc/self/statm", encoding: .utf8).split(separator: " ")
        return try #require(Int(pages[1])) * Int(getpagesize())
    }

    /// What is freed goes back to the system, not to an allocator that keeps it.
    @Test func memoryGoesBackWithTheBuffers() throws {
        let queue = try makeQueue()
        guard queue.device.kind == .cpu else { return }
        let zeros = [UInt8](repeating: 0, count: 16 << 20)
        func fill(_ count: Int) throws -> [Buffer] {
            try (0..<count).map { _ in
                let buffer = try Buffer(queue, byteCount: zeros.count)
                try zeros.withUnsafeBytes { try queue.write($0, to: buffer) }
                return buffer
            }
        }
        // Once glibc's malloc has seen a block of this size go, it keeps smaller ones in its heap, which what is allocated behind them holds.
        try [UInt8](repeating: 0, count: 31 << 20).withUnsafeBytes {
            try queue.write($0, to: Buffer(queue, byteCount: $0.count))
        }
        var buffers = try fill(16)
        let last = try fill(1)
        let full = try residentBytes()
        buffers.removeAll()
        try queue.finish()
        #expect(try full - residentBytes() > 128 << 20)
        _ = last
    }

    @Test func writesAtAnOffset() throws {
        let queue = try makeQueue()
        let buffer = try Buffer(queue, byteCount: 16)
        try [UInt8](repeating: 1, count: 16).withUnsafeBytes { try queue.write($0, to: buffer) }
        try [UInt8](repeating: 9, count: 3).withUnsafeBytes { try queue.write($0, to: buffer, at: 12) }
        #expect(try bytes(of: buffer, queue, count: 16) == [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 9, 9, 9, 1])
    }

    @Test func copiesRowsBetweenPitches() throws {
        let queue = try makeQueue()
        let source = try Buffer(queue, byteCount: 3 * 4)
        let destination = try Buffer(queue, byteCount: 3 * 7)
        try [UInt8](1...12).withUnsafeBytes { try queue.write($0, to: source) }
        try [UInt8](repeating: 0, count: 21).withUnsafeBytes { try queue.write($0, to: destination) }
        try queue.copyRows(
            from: source,
            to: destination,
            destinationOffset: 2,
            rowBytes: 4,
            rows: 3,
            sourcePitch: 4,
            destinationPitch: 7
        )
        let expected: [UInt8] = [0, 0, 1, 2, 3, 4, 0, 0, 0, 5, 6, 7, 8, 0, 0, 0, 9, 10, 11, 12, 0]
        #expect(try bytes(of: destination, queue, count: 21) == expected)
    }

    @Test func largerThanOneAllocationIsRefusedWithTheBytes() throws {
        let queue = try makeQueue()
        let size = queue.device.maxAllocationBytes + 1
        let error = try #require(throws: OpenCLError.self) { try Buffer(queue, byteCount: size) }
        #expect(error.requestedBytes == size)
        #expect(error.status.isOutOfMemory)
        #expect(error.description.contains("\(size) bytes") && error.description.contains("clCreateBuffer"))
        #expect(queue.allocatedBytes == 0)
    }

    @Test func moreThanTheMemoryInAllIsRefusedWithTheBytes() throws {
        let queue = try makeQueue()
        queue.allocatedBytes = queue.device.globalMemoryBytes - 1000
        let error = try #require(throws: OpenCLError.self) { try Buffer(queue, byteCount: 1001) }
        #expect(error.requestedBytes == 1001)
        #expect(error.status == .memoryObjectAllocationFailure)
        #expect(throws: Never.self) { try Buffer(queue, byteCount: 1000) }
    }

    @Test func lowerLimitsMakeASmallDevice() throws {
        let queue = try makeQueue()
        queue.limits = MemoryLimits(totalBytes: 1000, allocationBytes: 600)
        #expect(throws: OpenCLError.self) { try Buffer(queue, byteCount: 601) }
        let first = try Buffer(queue, byteCount: 600)
        #expect(throws: OpenCLError.self) { try Buffer(queue, byteCount: 401) }
        withExtendedLifetime(first) {}
    }

    @Test func copiesBytesBetweenOffsets() throws {
        let queue = try makeQueue()
        let (source, destination) = (try Buffer(queue, byteCount: 16), try Buffer(queue, byteCount: 16))
        try [UInt8](0..<16).withUnsafeBytes { try queue.write($0, to: source) }
        try [UInt8](repeating: 99, count: 16).withUnsafeBytes { try queue.write($0, to: destination) }
        try queue.copy(from: source, at: 3, to: destination, at: 10, byteCount: 4)
        #expect(
            try bytes(of: destination, queue, count: 16) == [
                99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 3, 4, 5, 6, 99, 99,
            ]
        )
    }

    @Test func allocationsAreCounted() throws {
        let queue = try makeQueue()
        var first: Buffer? = try Buffer(queue, byteCount: 1000)
        let second = try Buffer(queue, byteCount: 500)
        #expect(queue.allocatedBytes == 1500)
        #expect(first?.byteCount == 1000)
        first = nil
        #expect(queue.allocatedBytes == 500)
        let third = try Buffer(queue, byteCount: 600)
        #expect(queue.allocatedBytes == 1100 && queue.peakBytes == 1500)
        withExtendedLifetime((second, third)) {}
    }
}

@Suite(.requiresDevice)
@DeviceActor
struct BufferPoolTests {
    @Test func returnedBufferComesBackForTheSameSizeClass() throws {
        let queue = try makeQueue()
        let pool = BufferPool(queue)
        let buffer = try pool.take(100_000)
        #expect(buffer.byteCount >= 100_000)
        pool.give(buffer)
        #expect(try pool.take(99_000) === buffer)
        #expect(try pool.take(100_000) !== buffer, "it is in use")
        pool.give(buffer)
        #expect(try pool.take(30_000) !== buffer, "it would waste two thirds")
    }

    @Test func emptyingReleasesTheMemory() throws {
        let queue = try makeQueue()
        let pool = BufferPool(queue)
        pool.give(try pool.take(1 << 20))
        #expect(queue.allocatedBytes == 1 << 20)
        pool.removeAll()
        #expect(queue.allocatedBytes == 0)
    }

    /// The pool grows only while all of it is in use.
    @Test func unusedBuffersAreReleasedBeforeThePoolGrows() throws {
        let queue = try makeQueue()
        let pool = BufferPool(queue, keptBytes: 0)
        func useTwoAtOnce() throws {
            let (first, second) = (try pool.take(1 << 20), try pool.take(2 << 20))
            pool.give(first)
            pool.give(second)
        }
        try useTwoAtOnce()
        #expect(pool.heldBytes == 3 << 20 && pool.highWaterBytes == 3 << 20)
        // Those unused for longest go first, and only as many as there is need of.
        pool.give(try pool.take(3 << 18))
        #expect(pool.heldBytes == 11 << 18 && queue.allocatedBytes == 11 << 18)
        pool.give(try pool.take(2 << 20))
        #expect(pool.heldBytes == 11 << 18)
        // One larger than all before takes the place of all.
        pool.give(try pool.take(4 << 20))
        #expect(pool.heldBytes == 4 << 20 && pool.highWaterBytes == 4 << 20 && queue.allocatedBytes == 4 << 20)
        pool.removeAll()
        #expect(pool.heldBytes == 0 && pool.highWaterBytes == 0 && queue.allocatedBytes == 0)
    }

    @Test func upToWhatItKeepsNothingIsReleased() throws {
        let queue = try makeQueue()
        let pool = BufferPool(queue, keptBytes: 4 << 20)
        let first = try pool.take(1 << 20)
        pool.give(first)
        pool.give(try pool.take(2 << 20))
        #expect(try pool.take(1 << 20) === first)
        #expect(pool.heldBytes == 3 << 20)
    }

    @Test func scratchTakesAnyLargerBuffer() throws {
        let queue = try makeQueue()
        let pool = BufferPool(queue)
        let (large, larger) = (try pool.take(4 << 20), try pool.take(8 << 20))
        pool.give(larger)
        pool.give(large)
        #expect(try pool.take(1 << 20, isScratch: true) === large)
        #expect(try pool.take(5 << 20, isScratch: true) === larger)
        #expect(try pool.take(1 << 20, isScratch: true).byteCount == 1 << 20)
    }

    @Test func aDryRunCountsWhatTheRealRunTakes() throws {
        let queue = try makeQueue()
        let pool = BufferPool(queue, keptBytes: 0)
        func useAndGiveBack(_ byteCount: Int, with other: Buffer) throws {
            let buffer = try pool.take(byteCount)
            try [UInt8](repeating: 1, count: 16).withUnsafeBytes { try queue.write($0, to: buffer) }
            try queue.copy(from: buffer, at: 0, to: other, at: 16, byteCount: 16)
            pool.give(buffer)
        }
        func work() throws {
            let second = try pool.take(4 << 20)
            try useAndGiveBack(1 << 20, with: second)
            pool.give(try pool.take(2 << 20))
            pool.give(second)
        }
        pool.give(try pool.take(100))
        let need = try pool.need(of: work)
        #expect(need.peakBytes == 6 << 20 && need.largestAllocation == 4 << 20)
        #expect(queue.allocatedBytes == 256 && queue.peakBytes == 256 && pool.heldBytes == 256 && !queue.isDryRun)
        pool.removeAll()
        try work()
        #expect(pool.highWaterBytes == need.peakBytes)
    }

    @Test func aDryRunIsNotBoundByTheDevice() throws {
        let queue = try makeQueue()
        let pool = BufferPool(queue)
        let need = try pool.need { pool.give(try pool.take(1 << 50)) }
        #expect(need.peakBytes == 1 << 50)
    }

    /// Unused buffers must not be what makes an allocation fail.
    @Test func unusedBuffersMakeRoom() throws {
        let queue = try makeQueue()
        let pool = BufferPool(queue)
        pool.give(try pool.take(1 << 20))
        let others = queue.device.globalMemoryBytes - (3 << 19)
        queue.allocatedBytes += others
        let large = try pool.take(5 << 18)
        #expect(queue.allocatedBytes == others + large.byteCount)
        #expect(throws: OpenCLError.self) { try pool.take(1 << 20) }
    }

    @Test(arguments: [0, 1, 255, 256, 257, 511, 2047, 2048, 2049, 1_000_003, 1 << 30, (1 << 30) + 1])
    func sizeClassesWasteLittle(_ size: Int) {
        let rounded = BufferPool.sizeClass(size)
        #expect(rounded >= size)
        #expect(rounded <= max(size + 256, size / 8 * 9 + 8))
        #expect(BufferPool.sizeClass(rounded) == rounded, "a class is its own")
    }

    /// A tensor that the device can just hold is not refused because its class is larger.
    @Test func classDoesNotExceedTheLargestAllocation() throws {
        let queue = try makeQueue()
        let size = queue.device.maxAllocationBytes + 1
        let error = try #require(throws: OpenCLError.self) { try BufferPool(queue).take(size) }
        #expect(error.requestedBytes == size)
    }
}
