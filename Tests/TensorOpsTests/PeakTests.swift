// The yardstick of `diffused benchmark --operators`: peaks that are possible, operands that are what they are said to be, work that is counted right.

import TestSupport
import Testing

@testable import TensorOps

@Suite(.requiresDevice)
@DeviceActor
struct PeakTests {
    /// A matrix product cannot be faster than its peak; how much slower it is allowed to be is a matter of its kernel.
    @Test(arguments: [DeviceVariant(.cpu, .float32), DeviceVariant(.gpu, .float32), .pairs])
    func nothingIsFasterThanThePeak(_ variant: DeviceVariant) throws {
        let device = try variant.device()
        let peak = try device.measurePeak()
        #expect(peak.floatOperations > 1e8 && peak.floatOperations < 1e15)
        #expect(peak.copiedBytes > 1e7 && peak.copiedBytes < 1e14)
        if let matrix = peak.matrixOperations { #expect(matrix > 1e8 && matrix < 1e16) }
        #expect((peak.matrixOperations != nil) == (variant == .pairs))
        let call = OperatorCall.linear(rows: 192, inChannels: 320, outChannels: 320)
        let time = try OperatorBenchmark(device, budgetSeconds: 0.05).measure(call)
        #expect(time.seconds > 0 && time.samples > 0)
        // Half as much again: on a busy machine the two are not measured under the same conditions.
        #expect(call.operations / time.seconds < 1.5 * peak.productOperations)
    }

    @Test(arguments: ElementType.allCases)
    func madeUpOperandsAreNeitherZeroNorLarge(_ type: ElementType) throws {
        let values = try DeviceVariant(.gpu, type).device().randomTensor([3, 1001], type).floats()
        #expect(values.allSatisfy { (0.5...1).contains(abs($0)) })
        let positive = values.filter { $0 > 0 }.count
        #expect(positive > 1300 && positive < 1700)
        #expect(Set(values).count > 100)
    }

    @Test func workIsCountedFromTheDefinition() throws {
        let device = try DeviceVariant(.cpu, .float16).device()
        // 2 pictures of 3 x 4 pixels out, 27 multiply-adds an element; half weights, float activations.
        let convolution = OperatorCall.convolution(
            batch: 2,
            height: 5,
            width: 7,
            inChannels: 3,
            outChannels: 10,
            stride: 2
        )
        #expect(convolution.weightCount == 270)
        #expect(convolution.operations == Double(2 * (2 * 3 * 4) * 270))
        #expect(convolution.bytes(on: device) == Double(4 * (2 * 35 * 3 + 24 * 10) + 2 * 270))
        let gated = OperatorCall.linear(rows: 6, inChannels: 5, outChannels: 7, isGEGLU: true, hasResidual: true)
        #expect(gated.operations == Double(2 * 6 * 5 * 14))
        #expect(gated.bytes(on: device) == Double(4 * 6 * (5 + 7 + 7) + 2 * 70))
        let causal = OperatorCall.attention(
            batch: 1,
            queries: 3,
            keys: 3,
            heads: 2,
            headSize: 4,
            isSelf: true,
            isCausal: true
        )
        // 1 + 2 + 3 pairs of a query and a key.
        #expect(causal.operations == Double(2 * 2 * 2 * 4 * 6))
    }
}
