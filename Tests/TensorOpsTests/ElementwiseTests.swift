// Conversions, concatenation, the passes around a sampling step, embeddings and pictures against double precision.

import Foundation
import TensorOps
import TestSupport
import Testing

private let counts = [1, 3, 63, 64, 65, 257, 4 * 64 * 64]

/// One variant for each storage of activations; these kernels have one form only.
private let storages = ElementType.allCases.map { DeviceVariant(.gpu, $0) }

@Suite(.requiresDevice)
@DeviceActor
struct ElementwiseTests {
    /// The device rounds as IEEE 754 does: to nearest, ties to even, overflow to infinity, and through the subnormals.
    @Test(arguments: storages)
    func storageRoundsToNearestEven(_ variant: DeviceVariant) throws {
        let device = try variant.device()
        var values: [Float] = [0, -0.0, 1, -1, .infinity, -.infinity, 65504, 65519, 65520, -65536, 1e-8, 6e-8, 3.3e38]
        for exponent in -26...16 {
            for step in 0..<32 {
                values.append(Float(sign: .plus, exponent: exponent, significand: 1 + Float(step) / 4096))
            }
            for step in 0..<32 {
                values.append(Float(sign: .plus, exponent: exponent, significand: 1 + Float(step) / 512))
            }
        }
        let stored = try device.tensor(values, shape: [values.count])
        #expect(stored.elementType == variant.activations)
        #expect(try stored.floats() == values.map { roundToStorage($0, variant.activations) })
        let notANumber = try device.tensor([.nan, -.nan], shape: [2]).floats()
        #expect(notANumber.allSatisfy { $0.isNaN })
    }

    @Test(arguments: storages, [[1, 1], [3, 5], [320, 640], [4, 1]])
    func concatenates(_ variant: DeviceVariant, _ channels: [Int]) throws {
        let device = try variant.device()
        let parts = channels.map {
            HostTensor.random([2, 3, 5, $0], seed: UInt64($0)).rounded(to: variant.activations)
        }
        let y = try device.upload(parts[0]).concatenated(with: device.upload(parts[1]))
        #expect(y.shape == [2, 3, 5, channels[0] + channels[1]])
        let expected = (0..<30).flatMap { row in
            parts.flatMap { Array($0.values[row * $0.channels..<(row + 1) * $0.channels]) }
        }
        #expect(try y.floats() == expected)
    }

    @Test(arguments: storages, [ActivationFunction.none, .silu])
    func sums(_ variant: DeviceVariant, _ function: ActivationFunction) throws {
        let device = try variant.device()
        let parts = (0..<2).map { HostTensor.random([2, 77], seed: UInt64($0)).rounded(to: variant.activations) }
        let y = try device.upload(parts[0]).sum(with: device.upload(parts[1]), function: function)
        let expected = zip(parts[0].values, parts[1].values).map { a, b in
            let sum = Double(a) + Double(b)
            return function == .none ? sum : sum / (1 + exp(-sum))
        }
        expectClose(try y.floats(), expected, OperatorTolerance.elementwise.bound(variant.activations))
    }

    @Test(arguments: counts)
    func masks(_ count: Int) throws {
        let device = try DeviceVariant(.gpu, .float16).device()
        let x = (0..<4).map { HostTensor.random([1, 1, count, 1], seed: UInt64($0) + 71) }
        let mask = HostTensor([1, 1, count, 1], (0..<count).map { [0, 1, 0.25][$0 % 3] })
        let tensors = try x.map { try device.upload($0, as: .float32) }
        let y = try tensors[0].masked(
            by: device.upload(mask, as: .float32),
            elsewhere: [(0.7, tensors[1]), (-0.3, tensors[2])]
        )
        let expected = (0..<count).map { index in
            let m = Double(mask.values[index])
            let other =
                Double(Float(0.7)) * Double(x[1].values[index]) - Double(Float(0.3)) * Double(x[2].values[index])
            return m * Double(x[0].values[index]) + (1 - m) * other
        }
        expectClose(try y.floats(), expected, OperatorTolerance.elementwise.bound(.float32))
    }

    @Test(arguments: storages)
    func takesRowsAndAppends(_ variant: DeviceVariant) throws {
        let device = try variant.device()
        let x = HostTensor.random([3, 5, 7], seed: 5).rounded(to: variant.activations)
        let rows = try device.upload(x).rows(at: [4, 0, 2])
        #expect(rows.shape == [3, 7])
        #expect(try rows.floats() == [4, 5, 12].flatMap { Array(x.values[$0 * 7..<($0 + 1) * 7]) })
        let both = try rows.appending(device.upload(x).reshaped([15, 7]))
        #expect(both.shape == [18, 7])
        #expect(try both.floats() == rows.floats() + x.values)
    }

    /// What is beyond half's range is not, for the operators of the same device with float32 activations.
    @Test func float32ActivationsDoNotOverflow() throws {
        let device = try DeviceVariant(.gpu, .float16).device()
        let weights = try device.convolutionWeights(
            [HostTensor([1, 8, 1, 1], .init(repeating: 16, count: 8))],
            bias: nil
        )
        let x = try device.tensor(.init(repeating: 1024, count: 8), shape: [1, 1, 1, 8], type: .float32)
        #expect(try x.converted(to: .float16).convolution(weights).floats() == [.infinity])
        let wide = device.withFloat32Activations()
        #expect(try x.on(wide).convolution(weights).floats() == [131_072])
        #expect(wide.withFloat32Activations() === wide)
    }

    @Test(arguments: storages, counts)
    func scalesLatentsForTheModel(_ variant: DeviceVariant, _ count: Int) throws {
        let device = try variant.device()
        let latents = HostTensor.random([1, 1, count, 1], seed: 61)
        let onDevice = try device.tensor(latents.values, shape: latents.shape, type: .float32)
        for copies in [1, 2, 3] {
            let y = try onDevice.modelInput(scale: 0.73, copies: copies)
            #expect(y.shape == [copies, 1, count, 1])
            let expected = (0..<copies).flatMap { _ in latents.values.map { Double($0) * Double(Float(0.73)) } }
            expectClose(try y.floats(), expected, OperatorTolerance.elementwise.bound(variant.activations))
        }
    }

    @Test(arguments: storages, counts)
    func guides(_ variant: DeviceVariant, _ count: Int) throws {
        let device = try variant.device()
        let output = HostTensor.random([2, 1, count, 1], seed: 63).rounded(to: variant.activations)
        let onDevice = try device.upload(output)
        for scale in [7.5, 1, 0] as [Float] {
            let y = try onDevice.guided(scale: scale)
            #expect(y.shape == [1, 1, count, 1] && y.elementType == .float32)
            expectClose(
                try y.floats(),
                referenceGuidance(output.values, scale: scale),
                OperatorTolerance.elementwise.bound(.float32),
                "scale \(scale)"
            )
        }
    }

    /// Of as many operands as any sampler adds, and more.
    @Test(arguments: [1, 2, 3, 4, 5, 8, 11], counts)
    func addsWeighted(_ terms: Int, _ count: Int) throws {
        let device = try DeviceVariant(.gpu, .float32).device()
        let factors = (0..<terms).map { Float(0.98 - 0.37 * Double($0)) }
        let operands = (0..<terms).map { HostTensor.random([1, 1, count, 1], seed: UInt64(70 + $0)) }
        let onDevice = try operands.map { try device.tensor($0.values, shape: $0.shape, type: .float32) }
        let y = try Tensor.weightedSum(zip(factors, onDevice).map { (factor: $0, tensor: $1) })
        #expect(y.shape == [1, 1, count, 1])
        expectClose(
            try y.floats(),
            referenceWeightedSum(zip(factors, operands).map { (factor: $0, values: $1.values) }),
            OperatorTolerance.elementwise.bound(.float32)
        )
        // Operands are left as they were.
        #expect(try onDevice[0].floats() == operands[0].values)
    }

    @Test(arguments: DeviceVariant.all, [1, 3, 64, 65, 768])
    func embedsTokens(_ variant: DeviceVariant, _ channels: Int) throws {
        let device = try variant.device()
        let table = HostTensor.random([101, channels], seed: 64).rounded(to: .float16)
        let positions = HostTensor.random([7, channels], seed: 65)
        let ids: [[Int32]] = [[0, 100, 5, 5, 99, 1, 0], [100, 100, 0, 17, 3, 2, 1]]
        let weights = try storageBytes(table.values, .float16).withUnsafeBytes {
            try EmbeddingWeights(
                table: WeightSource(bytes: $0, type: .float16, outChannels: 101),
                positions: positions.values,
                channels: channels,
                on: device
            )
        }
        let y = try device.embedding(ids, weights)
        #expect(y.shape == [2, 7, channels])
        let expected = referenceEmbedding(ids, table: table.rounded(to: variant.weights), positions: positions)
        expectClose(try y.floats(), expected, OperatorTolerance.elementwise.bound(variant.activations))
    }

    @Test(arguments: storages)
    func picturesRoundAndClamp(_ variant: DeviceVariant) throws {
        let device = try variant.device()
        var values: [Float] = [.nan, .infinity, -.infinity, 1e30, -1e30, 1.001, -1.001, 1, -1, 0, -0.0]
        // Every level, every half between two levels, and its neighbours.
        for level in 0...510 {
            let x = Float(level) / 255 - 1
            values += [x, x.nextUp, x.nextDown]
        }
        values += HostTensor.random([(3 - values.count % 3) % 3 + 300], seed: 66).values
        let stored = values.map { roundToStorage($0, variant.activations) }
        let picture = try device.tensor(stored, shape: [1, 1, stored.count / 3, 3])
        #expect(try picture.rgb8() == referenceRGB8(stored))
    }
}

@Suite(.requiresDevice)
@DeviceActor
struct ActivationFunctionTests {
    /// The device's own exponential and error functions, over all that a model can meet, densely.
    @Test(
        arguments: DeviceVariant.portable.map { DeviceVariant($0, .float32) } + DeviceVariant.shorterVectors,
        [ActivationFunction.silu, .gelu, .quickGELU]
    )
    func agreesWithDoublePrecision(_ variant: DeviceVariant, _ function: ActivationFunction) throws {
        let device = try variant.device()
        let x = (-60_000...60_000).map { Float($0) / 500 } + [1e-30, -1e-30, 1e-7, -1e-7, 1000, -1000, 1e20, -1e20]
        let weights = try device.convolutionWeights([HostTensor([1, 1, 1, 1], [1])], bias: nil)
        let y = try device.tensor(x, shape: [x.count, 1]).linear(weights, function: function).floats()
        for (input, output) in zip(x, y) {
            let expected = referenceActivation(function, Double(input))
            // Relative to the result and, because 1 + erf(x) cancels, to the argument as far as the functions bend.
            let bound = 4e-7 * abs(expected) + (abs(input) < 10 ? 4e-7 * abs(Double(input)) : 1e-9)
            guard abs(Double(output) - expected) > bound else { continue }
            Issue.record("\(function)(\(input)) is \(output) instead of \(expected)")
            return
        }
    }

    @Test(arguments: DeviceVariant.portable.map { DeviceVariant($0, .float32) })
    func passesOnNaN(_ variant: DeviceVariant) throws {
        let device = try variant.device()
        let weights = try device.convolutionWeights([HostTensor([1, 1, 1, 1], [1])], bias: nil)
        for function in [ActivationFunction.none, .silu, .gelu, .quickGELU] {
            let y = try device.tensor([.nan, 1], shape: [2, 1]).linear(weights, function: function).floats()
            #expect(y[0].isNaN && y[1].isFinite, "\(function)")
        }
    }
}
