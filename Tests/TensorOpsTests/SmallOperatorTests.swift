// Small cases of every kernel in every form and storage type: quick enough for scripts/test-oclgrind, which interprets each instruction.
// The memory they take from the pool is full of NaN, so that reading what was never written shows.

import OpenCLRuntime
import TensorOps
import TestSupport
import Testing

@Suite(.requiresDevice)
@DeviceActor
struct SmallOperatorTests {
    @Test(
        arguments: DeviceVariant.all + DeviceVariant.shorterVectors,
        [
            ConvolutionCase([2, 3, 2, 5], 9, stride: 2), ConvolutionCase([1, 4, 3, 5], 9, stride: 2, padding: .after),
            ConvolutionCase([2, 2, 3, 3], 33, to: (3, 5), .everything),
            ConvolutionCase([1, 3, 5, 17], 5, kernel: 1, .geglu),
        ]
    )
    func convolution(_ variant: DeviceVariant, _ convolution: ConvolutionCase) throws {
        try variant.fillPoolWithNaN()
        try convolution.check(variant)
    }

    @Test(
        arguments: DeviceVariant.all + DeviceVariant.shorterVectors,
        [
            AttentionCase(batch: 2, queries: 13, keys: 13, heads: 2, headSize: 7, isCausal: true),
            AttentionCase(queries: 3, keys: 33, heads: 1, headSize: 7),
        ]
    )
    func attention(_ variant: DeviceVariant, _ attention: AttentionCase) throws {
        try variant.fillPoolWithNaN()
        try attention.check(variant)
    }

    @Test(arguments: DeviceVariant.all + DeviceVariant.shorterVectors)
    func normalization(_ variant: DeviceVariant) throws {
        try variant.fillPoolWithNaN()
        try GroupNormCase(shape: [2, 5, 13, 18], groups: 3, function: .silu).check(variant)
        try LayerNormCase(shape: [3, 33]).check(variant)
    }

    @Test(arguments: ElementType.allCases)
    func everythingElse(_ type: ElementType) throws {
        let variant = DeviceVariant(.gpu, type)
        try variant.fillPoolWithNaN()
        let tests = ElementwiseTests()
        try tests.concatenates(variant, [3, 5])
        try tests.scalesLatentsForTheModel(variant, 65)
        try tests.guides(variant, 65)
        try tests.addsWeighted(3, 65)
        try tests.addsWeighted(8, 65)
        try tests.embedsTokens(variant, 3)
        try LinearTests().concatenatesSources(variant)
    }
}

extension DeviceVariant {
    /// Leaves unused buffers of every size the small cases need in the pool, all bytes set: NaN in every storage type.
    @DeviceActor
    fileprivate func fillPoolWithNaN() throws {
        let device = try device()
        var buffers: [Buffer] = []
        var size = 256
        while size <= 1 << 17 {
            // Size classes are eighths of a power of two.
            for eighths in 8..<16 { for _ in 0..<4 { buffers.append(try device.pool.take(size / 8 * eighths)) } }
            size *= 2
        }
        let ones = [UInt8](repeating: 0xff, count: 1 << 18)
        for buffer in buffers {
            try ones.withUnsafeBytes {
                try device.queue.write(UnsafeRawBufferPointer(rebasing: $0[..<buffer.byteCount]), to: buffer)
            }
            device.pool.give(buffer)
        }
    }
}
