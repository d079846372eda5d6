// What a device reaches at most, measured: the yardstick that operators' speeds are held against. Kernels/peak.cl.

internal import Logging
internal import OpenCLRuntime

/// The most that a device was measured to do.
public struct DevicePeak: Sendable, Equatable {
    /// Operations a second of float32 multiply-adds in registers; a multiply-add is two.
    public let floatOperations: Double
    /// Operations a second of the instruction that multiplies the device's operands (VDPBF16PS, `mma.sync`), registers only.
    ///
    /// Nil where products are float32 multiply-adds.
    public let matrixOperations: Double?
    /// Bytes a second that a copy beyond the caches reads and writes, together.
    public let copiedBytes: Double

    /// Operations a second that a matrix product could reach.
    public var productOperations: Double { matrixOperations ?? floatOperations }

    /// The shortest time, in seconds, in which a device of this peak could do an operator's work (its roofline).
    ///
    /// - Parameters:
    ///   - operations: Of matrix products.
    ///   - bytes: Read and written at least.
    public func shortestSeconds(operations: Double, bytes: Double) -> Double {
        max(operations / productOperations, bytes / copiedBytes)
    }
}

extension TensorDevice {
    /// Measures the device's peaks, in about a second.
    ///
    /// - Throws: `OpenCLError`, `KernelError`.
    public func measurePeak() throws -> DevicePeak {
        DevicePeak(
            floatOperations: try peakOfChains(
                "peak_fma",
                [.float(0.5), .float(0.5)],
                operationsPerRound: 2 * TensorDevice.chains * chainWidth
            ),
            matrixOperations: try peakOfProducts(),
            copiedBytes: try peakOfCopies()
        )
    }

    /// Independent chains of a work-item: more than the latency of a multiply-add times the units that a processor has for it, and few enough
    /// for the 16 vector registers of AVX2.
    private static let chains = 12

    /// VEC of the chains, also on devices whose family has none of its own.
    private var chainWidth: Int { tuning.family == .cpu ? tuning.vectorWidth : 4 }

    /// The peak of the instruction for matrix products, where the operands have one.
    private func peakOfProducts() throws -> Double? {
        if tuning.family == .cpu && operandType == .bfloat16 {
            // (1, -1) and (1, 1): the products cancel.
            return try peakOfChains(
                "peak_dot",
                [.int(0x3f80_bf80), .int(0x3f80_3f80)],
                operationsPerRound: 4 * TensorDevice.chains * chainWidth
            )
        }
        guard queue.device.platformName.contains("NVIDIA") && operandType == .float16 else { return nil }
        do {
            // A product of 16x16 by 16x8 is 4096 operations of 32 work-items; 8 of them a round. The halves are 2^-8.
            return try peakOfChains(
                "peak_mma",
                [.int(0x1c00_1c00), .int(0x1c00_1c00)],
                macros: ["MMA": 1],
                operationsPerRound: 8 * 4096 / 32
            )
        } catch let error as KernelError {
            // Cards before Ampere have no such instruction.
            queue.logger.info("no peak of mma.sync", metadata: ["reason": "\(error)"])
            return nil
        }
    }

    /// Operations a second of a kernel of independent chains: the best of five runs of about a twentieth of a second.
    private func peakOfChains(
        _ name: String,
        _ constants: [KernelArgument],
        macros: [String: Int]? = nil,
        operationsPerRound: Int
    ) throws -> Double {
        let isProcessor = tuning.family == .cpu
        let local = isProcessor ? 1 : tuning.elementwiseWorkGroup
        let items = max(queue.device.computeUnits, 1) * (isProcessor ? 8 : 2048)
        let y = try Tensor([items + local, chainWidth], .float32, on: self)
        let kernel = try kernel(
            name,
            file: "peak.cl",
            macros: macros ?? ["ROWS": TensorDevice.chains],
            arguments: constants.count + 2
        )
        var rounds = 1000
        func seconds() throws -> Double {
            try secondsUntilFinished {
                try kernel.enqueue(
                    [.buffer(y.buffer)] + constants + [.int(rounds)],
                    global: [items],
                    local: [local]
                )
            }
        }
        _ = try seconds()
        rounds = max(1000, min(100_000_000, Int(1000 * 0.05 / max(try seconds(), 1e-6))))
        let best = try (0..<5).map { _ in try seconds() }.min() ?? 1
        let launched = (items + local - 1) / local * local
        return Double(launched) * Double(operationsPerRound) * Double(rounds) / best
    }

    /// Bytes read and written a second: the best of five copies of a quarter of a gigabyte, or what the device can hold.
    private func peakOfCopies() throws -> Double {
        let vectorBytes = chainWidth * 4
        let count = min(1 << 28, maxAllocationBytes / 4, queue.device.globalMemoryBytes / 8) / vectorBytes
        let x = try randomTensor([count, chainWidth], .float32)
        let y = try Tensor([count, chainWidth], .float32, on: self)
        let kernel = try kernel("copy_vectors", file: "peak.cl", arguments: 3)
        let copies = try (0..<6).map { _ in
            try secondsUntilFinished {
                try kernel.enqueue(
                    [.buffer(x.buffer), .buffer(y.buffer), .ulong(count)],
                    global: [(count + 15) / 16],
                    local: [tuning.elementwiseWorkGroup]
                )
            }
        }
        // The first one builds the kernel and touches the memory.
        return 2 * Double(count * vectorBytes) / (copies.dropFirst().min() ?? 1)
    }

    /// Seconds from the first call in `body` until the device has nothing left to do.
    func secondsUntilFinished(_ body: () throws -> Void) throws -> Double {
        try queue.finish()
        return try ContinuousClock().measure {
            try body()
            try queue.finish()
        } / .seconds(1)
    }

    /// A tensor of numbers of either sign between 0.5 and 1, made on the device.
    func randomTensor(_ shape: [Int], _ type: ElementType) throws -> Tensor {
        let y = try Tensor(shape, type, on: self)
        try kernel("fill_operand", file: "peak.cl", macros: ["OUTPUT": type.rawValue], arguments: 2).enqueue(
            [.buffer(y.buffer), .ulong(y.count)],
            global: [y.count],
            local: [tuning.elementwiseWorkGroup]
        )
        return y
    }
}
