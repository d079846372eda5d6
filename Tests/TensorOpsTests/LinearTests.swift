// Linear layers through the convolution kernels and through CLBlast, and the packing of weights, against double precision.

import TensorOps
import TestSupport
import Testing

struct LinearCase: Sendable, CustomTestStringConvertible {
    /// The input's shape, `[..., C]`.
    let input: [Int]
    let outChannels: Int
    var function = ActivationFunction.none
    var hasResidual = false
    var isGEGLU = false
    var hasBias = true

    var testDescription: String {
        "\(input) to \(outChannels)" + (function == .none ? "" : ", \(function)") + (hasResidual ? ", residual" : "")
            + (isGEGLU ? ", GEGLU" : "") + (hasBias ? "" : ", no bias")
    }

    @DeviceActor
    func check(_ device: TensorDevice, as type: ElementType? = nil, positions limit: Int = 2000) throws {
        let (rows, channels) = (input.dropLast().reduce(1, *), input[input.count - 1])
        let weightRows = outChannels * (isGEGLU ? 2 : 1)
        var reference = ReferenceConvolution(
            HostTensor.random([1, 1, rows, channels], seed: 11).rounded(to: device.operandType),
            weight: .random([weightRows, channels, 1, 1], seed: 12, deviation: 1 / Float(channels).squareRoot()),
            bias: hasBias ? HostTensor.random([weightRows], seed: 13).values : nil
        )
        reference.function = function
        reference.isGEGLU = isGEGLU
        if hasResidual {
            reference.residual = .random(reference.shape, seed: 14).rounded(to: device.activationType)
        }
        let weights = try device.convolutionWeights(
            [reference.weight],
            bias: reference.bias,
            isGEGLU: isGEGLU,
            isLinear: true
        )
        // CLBlast multiplies in float32 what the checkpoint holds.
        if device.gemmProvider(channels, weightRows) == .builtin {
            reference.weight = reference.weight.rounded(to: device.weightType)
        }
        let shape = Array(input.dropLast()) + [outChannels]
        let y = try device.upload(HostTensor(input, reference.x.values)).linear(
            weights,
            function: function,
            residual: reference.residual.map { try device.upload(HostTensor(shape, $0.values)) },
            as: type
        )
        #expect(y.shape == shape)
        let positions = sample(y.count, limit: limit)
        expectClose(
            try y.floats().at(positions),
            reference.values(at: positions),
            OperatorTolerance.convolution.bound(type ?? device.activationType),
            testDescription
        )
    }
}

/// Of the text encoder, the time embedding and the transformer blocks, and awkward ones.
let linearCases = [
    LinearCase(input: [2, 77, 768], outChannels: 3 * 768),
    LinearCase(input: [2, 77, 768], outChannels: 3072, function: .quickGELU),
    LinearCase(input: [2, 77, 1024], outChannels: 4096, function: .gelu),
    LinearCase(input: [2, 320], outChannels: 1280, function: .silu),
    LinearCase(input: [2, 4096, 320], outChannels: 320, hasResidual: true),
    LinearCase(input: [2, 77, 768], outChannels: 640, hasBias: false),
    LinearCase(input: [2, 256, 1280], outChannels: 5120, isGEGLU: true),
    LinearCase(input: [1, 1, 1], outChannels: 1, function: .silu),
    LinearCase(input: [3, 7, 13], outChannels: 17, hasResidual: true),
    LinearCase(input: [1, 11, 5], outChannels: 3, isGEGLU: true),
    LinearCase(input: [129, 3], outChannels: 65, function: .gelu),
]

@Suite(.requiresDevice)
@DeviceActor
struct LinearTests {
    @Test(arguments: DeviceVariant.fast, linearCases)
    func builtin(_ variant: DeviceVariant, _ linear: LinearCase) throws {
        try linear.check(variant.device(), positions: 1000)
    }

    /// Results that only matrix products read are stored as those want them.
    @Test(arguments: linearCases)
    func operands(_ linear: LinearCase) throws {
        try linear.check(DeviceVariant.pairs.device(), as: .bfloat16, positions: 1000)
    }

    /// CLBlast with the epilogue, for every storage of activations.
    @Test(arguments: ElementType.allCases, linearCases)
    func clblast(_ type: ElementType, _ linear: LinearCase) throws {
        let device = try DeviceVariant(.gpu, type).device()
        device.gemmProvider = { _, _ in .clblast }
        defer { device.gemmProvider = { _, _ in .builtin } }
        try linear.check(device, positions: 1000)
    }

    /// A GEGLU in two passes, with what is added between them in its order, is the one in one pass.
    @Test(arguments: DeviceVariant.all, [(9, 24), (13, 7)])
    func gatesApart(_ variant: DeviceVariant, _ channels: (Int, Int)) throws {
        try expectGatesApart(variant.device(), variant.activations, channels)
    }

    @Test(arguments: [(9, 24), (13, 7)])
    func gatesApartWithCLBlast(_ channels: (Int, Int)) throws {
        let device = try DeviceVariant(.gpu, .float32).device()
        device.gemmProvider = { _, _ in .clblast }
        defer { device.gemmProvider = { _, _ in .builtin } }
        try expectGatesApart(device, .float32, channels)
    }

    /// More rows than a GPU has work-groups in its second dimension.
    @Test(arguments: [GEMMProvider.builtin, .clblast])
    func gatesApartOfManyRows(_ provider: GEMMProvider) throws {
        let device = try DeviceVariant(.gpu, .float32).device()
        device.gemmProvider = { _, _ in provider }
        defer { device.gemmProvider = { _, _ in .builtin } }
        try expectGatesApart(device, .float32, (3, 5), positions: 65_600)
    }

    /// Query, key and value of different checkpoint types make one weight, whose parts do not end where panels do.
    @Test(arguments: DeviceVariant.all)
    func concatenatesSources(_ variant: DeviceVariant) throws {
        let device = try variant.device()
        let types: [ElementType] = [.float16, .bfloat16, .float32]
        let parts = zip([5, 33, 20], types).map { rows, type in
            HostTensor.random([rows, 9, 1, 1], seed: UInt64(rows)).rounded(to: type)
        }
        let sources = zip(parts, types).map { storageBytes($0.values, $1) }
        let bias = HostTensor.random([58], seed: 6).values
        let weights = try withBuffers(sources) { buffers in
            try ConvolutionWeights(
                buffers.indices.map {
                    WeightSource(bytes: buffers[$0], type: types[$0], outChannels: parts[$0].shape[0])
                },
                bias: bias,
                inChannels: 9,
                on: device
            )
        }
        let reference = ReferenceConvolution(
            HostTensor.random([1, 1, 4, 9], seed: 7).rounded(to: variant.operands),
            weight: HostTensor([58, 9, 1, 1], parts.flatMap(\.values)).rounded(to: variant.weights),
            bias: bias
        )
        let y = try device.upload(reference.x).linear(weights)
        expectClose(
            try y.floats(),
            reference.values(at: Array(0..<y.count)),
            OperatorTolerance.convolution.bound(variant.activations)
        )
    }

    /// The checkpoint's type and the device's are independent of each other.
    @Test(arguments: DeviceVariant.fast, ElementType.allCases)
    func convertsSources(_ variant: DeviceVariant, _ source: ElementType) throws {
        try ConvolutionCase([1, 3, 5, 7], 19).check(variant, weightsStoredAs: source)
    }
}

/// Compares a GEGLU in two passes, and something added between them, with the one in one pass and that in its bias.
@DeviceActor
func expectGatesApart(
    _ device: TensorDevice,
    _ activations: ElementType,
    _ channels: (Int, Int),
    positions: Int = 5
) throws {
    let (inChannels, outChannels) = channels
    let rows = 2 * outChannels
    let weight = HostTensor.random([rows, inChannels, 1, 1], seed: 1)
    let bias = HostTensor.random([rows], seed: 2).values
    let added = HostTensor.random([rows], seed: 3).values
    func weights(_ bias: [Float]) throws -> ConvolutionWeights {
        try device.convolutionWeights([weight], bias: bias, isGEGLU: true, isLinear: true)
    }
    let x = try device.upload(HostTensor.random([1, positions, inChannels], seed: 4))
    let apart = try weights(bias)
    var residual = [Float](repeating: 0, count: apart.ungated.outChannels)
    for row in 0..<rows { residual[apart.ungatedRow(row)] = added[row] }
    let residuals = HostTensor([1, positions, residual.count], (0..<positions).flatMap { _ in residual })
    let y = try x.linear(apart.ungated, residual: device.upload(residuals)).gated(apart, as: device.operandType)
    let expected = try x.linear(weights(zip(bias, added).map { $0 + $1 }))
    // Value and gate are rounded once more before they meet, each by at most this part of it, and so are both results.
    let rounding: Double =
        switch activations {
        case .float32: 0
        case .float16: 0x1p-11
        case .bfloat16: 0x1p-8
        }
    let bound = OperatorTolerance.convolution.bound(
        device.operandType == .float32 ? activations : device.operandType
    )
    expectClose(
        try y.floats(),
        try expected.floats().map(Double.init),
        rounding == 0 ? bound : Tolerance(nmse: 4 * rounding * rounding, peak: 16 * rounding)
    )
}
