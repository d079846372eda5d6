// Group and layer normalisation in every form and storage type against double precision.

import TensorOps
import TestSupport
import Testing

struct GroupNormCase: Sendable, CustomTestStringConvertible {
    /// The input's, `[N, ..., C]`.
    let shape: [Int]
    let groups: Int
    var function = ActivationFunction.none
    var mean: Float = 0
    var epsilon: Float = 1e-5

    var testDescription: String {
        "\(shape), \(groups) groups" + (function == .none ? "" : ", \(function)") + (mean == 0 ? "" : ", mean \(mean)")
    }

    @DeviceActor
    func check(_ variant: DeviceVariant, tolerance: OperatorTolerance = .groupNorm) throws {
        let device = try variant.device()
        let x = HostTensor.random(shape, seed: 31, mean: mean).rounded(to: variant.activations)
        let gamma = HostTensor.random([x.channels], seed: 32, mean: 1, deviation: 0.3).values
        let beta = HostTensor.random([x.channels], seed: 33, deviation: 0.3).values
        let y = try device.upload(x).groupNorm(
            NormWeights(gamma: gamma, beta: beta, on: device),
            groups: groups,
            epsilon: epsilon,
            function: function
        )
        #expect(y.shape == shape)
        expectClose(
            try y.floats(),
            referenceGroupNorm(
                x,
                gamma: gamma,
                beta: beta,
                groups: groups,
                epsilon: Double(epsilon),
                function: function
            ),
            tolerance.bound(variant.operands),
            "\(variant.testDescription), \(testDescription)"
        )
    }
}

/// Chunks are of 64 pixels, vectors of 4 to 16 channels, work-groups of up to 256.
let oddGroupNorms = [
    GroupNormCase(shape: [1, 1, 1, 1], groups: 1),
    GroupNormCase(shape: [2, 1, 1, 6], groups: 3),
    GroupNormCase(shape: [1, 7, 9, 3], groups: 3, function: .silu),
    GroupNormCase(shape: [1, 8, 8, 4], groups: 1),
    GroupNormCase(shape: [2, 5, 13, 5], groups: 1, function: .silu),
    GroupNormCase(shape: [3, 127, 31], groups: 31),
    GroupNormCase(shape: [1, 129, 33], groups: 11, function: .silu),
    GroupNormCase(shape: [1, 16, 16, 40], groups: 8),
    GroupNormCase(shape: [1, 67, 24, 96], groups: 24),
]

/// Groups wider than a work-group of the GPU form reads side by side.
let wideGroupNorms = [
    GroupNormCase(shape: [2, 3, 3, 2304], groups: 1, function: .silu),
    GroupNormCase(shape: [1, 41, 9, 8216], groups: 4),
    GroupNormCase(shape: [1, 50, 257], groups: 1),
]

let realGroupNorms = [
    GroupNormCase(shape: [2, 64, 64, 320], groups: 32, function: .silu),
    GroupNormCase(shape: [2, 32, 32, 960], groups: 32, function: .silu),
    GroupNormCase(shape: [2, 16, 16, 1280], groups: 32, epsilon: 1e-6),
    GroupNormCase(shape: [2, 8, 8, 2560], groups: 32, function: .silu),
    GroupNormCase(shape: [1, 128, 128, 512], groups: 32, function: .silu, epsilon: 1e-6),
]

struct LayerNormCase: Sendable, CustomTestStringConvertible {
    /// The input's, `[..., C]`.
    let shape: [Int]
    var mean: Float = 0

    var testDescription: String { "\(shape)" + (mean == 0 ? "" : ", mean \(mean)") }

    @DeviceActor
    func check(_ variant: DeviceVariant, tolerance: OperatorTolerance = .layerNorm) throws {
        let device = try variant.device()
        let x = HostTensor.random(shape, seed: 41, mean: mean).rounded(to: variant.activations)
        let gamma = HostTensor.random([x.channels], seed: 42, mean: 1, deviation: 0.3).values
        let beta = HostTensor.random([x.channels], seed: 43, deviation: 0.3).values
        let y = try device.upload(x).layerNorm(NormWeights(gamma: gamma, beta: beta, on: device), epsilon: 1e-5)
        #expect(y.shape == shape)
        expectClose(
            try y.floats(),
            referenceLayerNorm(x, gamma: gamma, beta: beta, epsilon: Double(Float(1e-5))),
            tolerance.bound(variant.operands),
            "\(variant.testDescription), \(testDescription)"
        )
    }
}

let layerNormCases =
    [
        [1, 1], [2, 3, 2], [63, 5], [65, 15], [1, 64, 16], [129, 17], [7, 33], [2, 77, 768], [2, 77, 1024],
        [2, 1024, 640],
    ]
    .map { LayerNormCase(shape: $0) }

@Suite(.requiresDevice)
@DeviceActor
struct NormalizationTests {
    @Test(
        arguments: DeviceVariant.all.filter { $0.operands == $0.weights } + DeviceVariant.shorterVectors,
        oddGroupNorms
    )
    func groupNorm(_ variant: DeviceVariant, _ norm: GroupNormCase) throws {
        try norm.check(variant)
    }

    @Test(arguments: DeviceVariant.all.filter { $0.operands == $0.weights && $0.family == .gpu }, wideGroupNorms)
    func groupNormOfWideGroups(_ variant: DeviceVariant, _ norm: GroupNormCase) throws {
        try norm.check(variant)
    }

    @Test(
        arguments: [DeviceVariant(.cpu, .float32), DeviceVariant(.gpu, .float32), DeviceVariant(.gpu, .float16)],
        realGroupNorms
    )
    func groupNormOfStableDiffusion(_ variant: DeviceVariant, _ norm: GroupNormCase) throws {
        try norm.check(variant)
    }

    @Test(
        arguments: DeviceVariant.all.filter { $0.operands == $0.weights } + DeviceVariant.shorterVectors,
        layerNormCases
    )
    func layerNorm(_ variant: DeviceVariant, _ norm: LayerNormCase) throws {
        try norm.check(variant)
    }

    /// A variance computed as E[x²] - E[x]² would be noise here.
    @Test(arguments: DeviceVariant.all.filter { $0.activations == .float32 })
    func meanFarFromZero(_ variant: DeviceVariant) throws {
        try GroupNormCase(shape: [2, 16, 16, 64], groups: 32, mean: 1000)
            .check(variant, tolerance: .normOfDistantMean)
        try LayerNormCase(shape: [32, 320], mean: 1000).check(variant, tolerance: .normOfDistantMean)
    }

    /// Without any variance the result is the shift.
    @Test(arguments: DeviceVariant.all, [0, 3.7, -1000] as [Float])
    func constantInput(_ variant: DeviceVariant, _ value: Float) throws {
        let device = try variant.device()
        let stored = roundToStorage(value, variant.activations)
        let x = try device.upload(HostTensor([1, 9, 9, 24], [Float](repeating: stored, count: 81 * 24)))
        let beta = HostTensor.random([24], seed: 51).values
        let weights = try NormWeights(gamma: [Float](repeating: 1, count: 24), beta: beta, on: device)
        let expected = (0..<81).flatMap { _ in beta.map { Double($0) } }
        // The mean may be off by a rounding, which 1 / sqrt(epsilon) magnifies.
        let tolerance = Tolerance(
            nmse: 1,
            peak: Double(abs(stored)) * 0x1p-20 / 1e-5.squareRoot() + 1e-6,
            storage: variant.operands
        )
        expectClose(try x.groupNorm(weights, groups: 8, epsilon: 1e-5).floats(), expected, tolerance, "group norm")
        expectClose(try x.layerNorm(weights, epsilon: 1e-5).floats(), expected, tolerance, "layer norm")
    }
}
