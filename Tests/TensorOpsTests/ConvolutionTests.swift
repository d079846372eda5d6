// Convolutions in every form and storage type against double precision: shapes of Stable Diffusion, and awkward ones.

import TensorOps
import TestSupport
import Testing

/// What is fused into a convolution.
///
/// Each is a kernel of its own, so that there are few of them.
enum Fusion: String, Sendable {
    case none, channelBias, residual, geglu, gelu, quickGELU
    /// SiLU with channel bias and residual.
    case everything
}

struct ConvolutionCase: Sendable, CustomTestStringConvertible {
    /// The input's shape, `[N, H, W, C]`.
    let input: [Int]
    let outChannels: Int
    var kernel = 3
    var stride = 1
    var padding = ConvolutionPadding.around
    var upsampledTo: (height: Int, width: Int)?
    var fusion = Fusion.none
    var hasBias = true

    init(
        _ input: [Int],
        _ outChannels: Int,
        kernel: Int = 3,
        stride: Int = 1,
        padding: ConvolutionPadding = .around,
        to upsampledTo: (Int, Int)? = nil,
        _ fusion: Fusion = .none,
        hasBias: Bool = true
    ) {
        self.input = input
        self.outChannels = outChannels
        self.kernel = kernel
        self.stride = stride
        self.padding = padding
        self.upsampledTo = upsampledTo.map { ($0.0, $0.1) }
        self.fusion = fusion
        self.hasBias = hasBias
    }

    var testDescription: String {
        "\(input) to \(outChannels), \(kernel)x\(kernel)" + (stride == 1 ? "" : ", stride \(stride)")
            + (padding == .around ? "" : ", zeros after")
            + (upsampledTo.map { ", enlarged to \($0.height)x\($0.width)" } ?? "")
            + (fusion == .none ? "" : ", \(fusion)") + (hasBias ? "" : ", no bias")
    }

    /// Multiplications of the whole convolution.
    var multiplications: Int {
        let pixels = (upsampledTo?.height ?? input[1]) * (upsampledTo?.width ?? input[2]) / stride / stride
        return input[0] * pixels * input[3] * outChannels * kernel * kernel
    }

    /// Inputs of about unit size, and weights that keep them so.
    func reference(_ variant: DeviceVariant, weightsStoredAs source: ElementType) -> ReferenceConvolution {
        let fanIn = Float(input[3] * kernel * kernel)
        let rows = outChannels * (fusion == .geglu ? 2 : 1)
        var reference = ReferenceConvolution(
            HostTensor.random(input, seed: 1).rounded(to: variant.operands),
            weight: HostTensor.random([rows, input[3], kernel, kernel], seed: 2, deviation: 1 / fanIn.squareRoot())
                .rounded(to: source),
            bias: hasBias ? HostTensor.random([rows], seed: 3).values : nil
        )
        reference.stride = stride
        reference.padding = padding
        reference.upsampledTo = upsampledTo
        reference.isGEGLU = fusion == .geglu
        switch fusion {
        case .gelu: reference.function = .gelu
        case .quickGELU: reference.function = .quickGELU
        case .everything: reference.function = .silu
        default: break
        }
        if fusion == .channelBias || fusion == .everything {
            reference.channelBias = HostTensor.random([input[0], outChannels], seed: 4).rounded(to: variant.activations)
        }
        if fusion == .residual || fusion == .everything {
            reference.residual = HostTensor.random(reference.shape, seed: 5).rounded(to: variant.activations)
        }
        return reference
    }

    @DeviceActor
    func check(_ variant: DeviceVariant, weightsStoredAs source: ElementType = .float32, positions limit: Int = 2000)
        throws
    {
        let device = try variant.device()
        var reference = reference(variant, weightsStoredAs: source)
        let weights = try device.convolutionWeights(
            [reference.weight],
            storedAs: source,
            bias: reference.bias,
            isGEGLU: reference.isGEGLU
        )
        reference.weight = reference.weight.rounded(to: variant.weights)
        let y = try device.upload(reference.x).convolution(
            weights,
            stride: stride,
            padding: padding,
            upsampledTo: upsampledTo,
            function: reference.function,
            channelBias: reference.channelBias.map { try device.upload($0) },
            residual: reference.residual.map { try device.upload($0) }
        )
        #expect(y.shape == reference.shape)
        #expect(y.elementType == variant.activations)
        let positions = sample(y.count, limit: limit)
        expectClose(
            try y.floats().at(positions),
            reference.values(at: positions),
            (variant.winogradTiles == nil ? OperatorTolerance.convolution : .winograd).bound(variant.activations),
            "\(variant.testDescription), \(testDescription)"
        )
    }
}

/// Cases that meet every edge of the tiles: 12, 6 or 4 pixels, panels of 8, 16, 32 and 64 channels, 16 channels deep.
let oddConvolutions = [
    ConvolutionCase([1, 1, 1, 1], 1),
    ConvolutionCase([1, 1, 1, 3], 33),
    ConvolutionCase([1, 1, 11, 5], 31, hasBias: false),
    ConvolutionCase([1, 13, 1, 4], 7),
    ConvolutionCase([3, 5, 7, 17], 65),
    ConvolutionCase([1, 11, 13, 16], 63),
    ConvolutionCase([2, 8, 8, 15], 32),
    ConvolutionCase([2, 9, 11, 17], 33, stride: 2),
    ConvolutionCase([1, 8, 10, 3], 5, stride: 2),
    ConvolutionCase([1, 1, 1, 2], 3, stride: 2),
    ConvolutionCase([2, 8, 6, 17], 33, stride: 2, padding: .after),
    ConvolutionCase([1, 9, 3, 5], 9, stride: 2, padding: .after, .residual),
    ConvolutionCase([1, 5, 3, 9], 8, to: (9, 5)),
    ConvolutionCase([2, 9, 9, 5], 17, to: (17, 17)),
    ConvolutionCase([1, 3, 3, 7], 9, to: (6, 6)),
    ConvolutionCase([1, 1, 1, 2], 3, to: (2, 3)),
    ConvolutionCase([2, 3, 5, 6], 37, .channelBias),
    ConvolutionCase([2, 3, 5, 6], 37, .residual),
    ConvolutionCase([2, 5, 3, 7], 29, to: (7, 6), .everything),
    ConvolutionCase([2, 1, 1, 2], 1, to: (3, 5), .everything),
    ConvolutionCase([1, 1, 1, 1], 1, kernel: 1),
    ConvolutionCase([2, 7, 9, 5], 13, kernel: 1),
    ConvolutionCase([1, 7, 11, 37], 41, kernel: 1, .residual),
    ConvolutionCase([1, 3, 7, 11], 1, kernel: 1, .geglu),
    ConvolutionCase([1, 5, 5, 19], 47, kernel: 1, .geglu),
]

/// The convolutions of an SD 1.5 UNet at 512x512 with guidance, and of its VAE.
let realConvolutions = [
    ConvolutionCase([2, 64, 64, 4], 320),
    ConvolutionCase([2, 64, 64, 320], 320),
    ConvolutionCase([2, 64, 64, 320], 320, stride: 2),
    ConvolutionCase([2, 64, 64, 320], 4),
    ConvolutionCase([2, 32, 32, 960], 640, .channelBias),
    ConvolutionCase([2, 32, 32, 640], 640, .residual),
    ConvolutionCase([2, 32, 32, 640], 320, kernel: 1),
    ConvolutionCase([2, 16, 16, 1280], 1280, to: (32, 32)),
    ConvolutionCase([2, 8, 8, 1280], 1280, .residual),
    ConvolutionCase([2, 8, 8, 2560], 1280, kernel: 1, .residual),
    ConvolutionCase([1, 128, 128, 256], 128),
    ConvolutionCase([1, 128, 128, 128], 3),
]

/// Maps that whole tiles cover and that they do not, one strip and several, enlarged and with everything fused.
let winogradConvolutions = [
    ConvolutionCase([1, 4, 4, 64], 64),
    ConvolutionCase([1, 1, 1, 64], 64),
    ConvolutionCase([2, 5, 7, 80], 96),
    ConvolutionCase([1, 18, 22, 64], 112, .channelBias, hasBias: false),
    ConvolutionCase([3, 9, 3, 96], 64, .residual),
    ConvolutionCase([2, 5, 7, 64], 80, to: (10, 14), .everything),
    ConvolutionCase([2, 6, 3, 64], 64, to: (11, 6), .everything),
]

/// Where models take Winograd's way.
let realWinogradConvolutions = [
    ConvolutionCase([2, 64, 64, 320], 320, .channelBias),
    ConvolutionCase([2, 32, 32, 1280], 640),
    ConvolutionCase([1, 64, 64, 512], 512, .residual),
    ConvolutionCase([1, 64, 64, 512], 512, to: (128, 128)),
    ConvolutionCase([1, 128, 128, 256], 128),
]

/// A case on a variant of the device.
struct ConvolutionCheck: Sendable, CustomTestStringConvertible {
    let variant: DeviceVariant
    let convolution: ConvolutionCase

    var testDescription: String { "\(variant.testDescription): \(convolution.testDescription)" }

    static func all(_ variants: [DeviceVariant], _ cases: [ConvolutionCase]) -> [ConvolutionCheck] {
        variants.flatMap { variant in cases.map { ConvolutionCheck(variant: variant, convolution: $0) } }
    }
}

/// Storage types and vector widths change loads, stores and tiles only, so cases that use all of those stand for the others.
private let representative = oddConvolutions.filter {
    $0.fusion == .everything || $0.fusion == .geglu || ($0.fusion == .none && $0.kernel == 3 && $0.upsampledTo == nil)
}

/// Forms for GPUs are too slow on a processor for the largest cases.
private func isBearable(_ check: ConvolutionCheck) -> Bool {
    check.variant.family == .cpu || testDeviceIsGPU || check.convolution.multiplications < 4 << 30
}

@Suite(.requiresDevice)
@DeviceActor
struct ConvolutionTests {
    @Test(arguments: ConvolutionCheck.all(DeviceVariant.portable.map { DeviceVariant($0, .float32) }, oddConvolutions))
    func awkwardShapes(_ check: ConvolutionCheck) throws {
        try check.convolution.check(check.variant)
    }

    @Test(
        arguments: ConvolutionCheck.all(
            DeviceVariant.all.filter { $0.weights != .float32 } + DeviceVariant.shorterVectors,
            representative
        )
    )
    func storageTypesAndVectorWidths(_ check: ConvolutionCheck) throws {
        try check.convolution.check(check.variant)
    }

    @Test(arguments: ConvolutionCheck.all(DeviceVariant.fast, realConvolutions).filter(isBearable))
    func stableDiffusionShapes(_ check: ConvolutionCheck) throws {
        try check.convolution.check(check.variant, positions: 500)
    }

    @Test(
        arguments: ConvolutionCheck.all(
            ([DeviceVariant(.cpu, .float32), DeviceVariant(.cpu, .float16), .pairs] + DeviceVariant.shorterVectors)
                .map {
                    var variant = $0
                    variant.winogradTiles = 1
                    variant.winogradStripBytes = 1
                    return variant
                },
            winogradConvolutions
        )
    )
    func winograd(_ check: ConvolutionCheck) throws {
        try check.convolution.check(check.variant)
    }

    @Test(arguments: realWinogradConvolutions)
    func winogradOfStableDiffusion(_ convolution: ConvolutionCase) throws {
        try convolution.check(DeviceVariant(.cpu, .float32, winogradTiles: 1), positions: 2000)
    }

    /// Sums beyond the range of half become infinite, as they do in any framework, and not something else.
    @Test(arguments: DeviceVariant.all.filter { $0.activations == .float16 })
    func overflowsToInfinity(_ variant: DeviceVariant) throws {
        let device = try variant.device()
        let weights = try device.convolutionWeights([HostTensor([2, 2, 1, 1], [300, 0, -300, 1])], bias: nil)
        let y = try device.upload(HostTensor([1, 1, 1, 2], [300, 7])).linear(weights)
        #expect(try y.floats() == [.infinity, -.infinity])
    }
}
