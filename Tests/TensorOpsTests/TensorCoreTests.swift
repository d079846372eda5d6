// The NVIDIA form against double precision, on tensor cores or emulated: every combination of channels and kernel in Stable Diffusion's UNet and
// VAE, with few pixels, since an emulated product takes a microsecond; every tile; edges; the self-test and what it falls back to.

import Foundation
import Logging
import OpenCLRuntime
import TensorOps
import TestSupport
import Testing

/// The NVIDIA form from kernels without those for any GPU: what takes the place of one on tensor cores fails.
private func tensorCores(_ tile: MatrixTile? = nil) throws -> DeviceVariant {
    var variant = DeviceVariant(.nvidia, .float16)
    variant.matrixTile = tile
    variant.kernelsDirectory = try TensorCoreKernels.withoutFallback.get().path
    return variant
}

private enum TensorCoreKernels {
    /// Kernels/ as it is, but for convolution.cl and attention.cl.
    static let withoutFallback: Result<TemporaryDirectory, any Error> = Result {
        try changed { file, source in
            file == "convolution.cl" || file == "attention.cl" ? "#error \"not on tensor cores\"\n" : source
        }
    }

    /// Kernels/ with changed sources.
    static func changed(_ change: (String, String) -> String) throws -> TemporaryDirectory {
        let directory = try TemporaryDirectory()
        let kernels = packageRoot + "/Kernels"
        for name in try FileManager.default.contentsOfDirectory(atPath: kernels) {
            try directory.write(change(name, String(contentsOfFile: kernels + "/" + name, encoding: .utf8)), to: name)
        }
        return directory
    }
}

/// Edges of the tiles of 64 and 128 pixels and channels, of steps of 32 channels, and everything that may be fused.
private let edges = [
    ConvolutionCase([1, 1, 1, 8], 1),
    ConvolutionCase([1, 5, 13, 40], 72, .everything),
    ConvolutionCase([2, 9, 11, 24], 136, stride: 2, .channelBias),
    ConvolutionCase([3, 7, 7, 32], 33, .residual),
    ConvolutionCase([2, 5, 4, 16], 64, to: (9, 8), .everything),
    ConvolutionCase([2, 5, 4, 72], 9, to: (9, 7), hasBias: false),
    ConvolutionCase([1, 3, 43, 56], 129, kernel: 1, .quickGELU),
    ConvolutionCase([1, 11, 12, 64], 72, kernel: 1, .geglu),
    ConvolutionCase([1, 1, 65, 8], 19, kernel: 1, .geglu),
]

/// Input and output channels of the UNet's 3x3 convolutions (SD 1.5 and 2.1), and of the VAE decoder's.
private let pairs3x3 = [
    (320, 320), (320, 640), (640, 640), (640, 1280), (1280, 1280), (2560, 1280), (1920, 1280), (1920, 640), (1280, 640),
    (960, 640), (960, 320), (640, 320), (320, 4), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128), (128, 3),
]

/// Of its 1x1 convolutions and linear layers, among them the text encoders'.
private let pairs1x1 = [
    (320, 320), (320, 640), (640, 640), (640, 1280), (1280, 1280), (2560, 1280), (1920, 1280), (1920, 640), (1280, 640),
    (960, 640), (960, 320), (640, 320), (512, 256), (256, 128), (512, 512), (320, 960), (640, 1920), (1280, 3840),
    (1280, 320), (2560, 640), (5120, 1280), (768, 640), (768, 2304), (768, 3072), (3072, 768), (1024, 4096),
]

/// Head size, with queries and keys that are blocks and are not.
private let heads = [
    AttentionCase(queries: 1, keys: 1, heads: 1, headSize: 40),
    AttentionCase(batch: 2, queries: 131, keys: 131, heads: 2, headSize: 40),
    AttentionCase(queries: 256, keys: 77, heads: 8, headSize: 40),
    AttentionCase(batch: 2, queries: 77, keys: 77, heads: 3, headSize: 64, isCausal: true),
    AttentionCase(queries: 5, keys: 65, heads: 5, headSize: 64),
    AttentionCase(batch: 2, queries: 127, keys: 33, heads: 2, headSize: 80),
    AttentionCase(queries: 160, keys: 160, heads: 1, headSize: 80, isCausal: true),
    AttentionCase(batch: 2, queries: 64, keys: 64, heads: 2, headSize: 160),
    AttentionCase(queries: 67, keys: 77, heads: 3, headSize: 160),
    AttentionCase(queries: 35, keys: 35, heads: 1, headSize: 160, isCausal: true),
    AttentionCase(batch: 2, queries: 64, keys: 64, heads: 1, headSize: 512),
    AttentionCase(queries: 17, keys: 95, heads: 2, headSize: 512),
    AttentionCase(queries: 33, keys: 33, heads: 1, headSize: 512, isCausal: true),
]

@Suite(.requiresDevice, .requiresTensorCoreKernels)
@DeviceActor
struct TensorCoreTests {
    @Test(arguments: MatrixTile.all, [1, 3])
    func everyTileAtItsEdges(_ tile: MatrixTile, _ splits: Int) throws {
        var tile = tile
        tile.splits = splits
        for convolution in edges { try convolution.check(tensorCores(tile), positions: 1000) }
    }

    @Test(arguments: pairs3x3)
    func convolutionsOfStableDiffusion(_ channels: (Int, Int)) throws {
        try ConvolutionCase([1, 6, 6, channels.0], channels.1, .residual).check(tensorCores(), positions: 300)
    }

    @Test(arguments: [(320, 320), (640, 640), (1280, 1280)])
    func samplingOfStableDiffusion(_ channels: (Int, Int)) throws {
        try ConvolutionCase([1, 8, 8, channels.0], channels.1, stride: 2).check(tensorCores(), positions: 300)
        try ConvolutionCase([1, 3, 3, channels.0], channels.1, to: (6, 6)).check(tensorCores(), positions: 300)
    }

    @Test(arguments: pairs1x1)
    func linearLayersOfStableDiffusion(_ channels: (Int, Int)) throws {
        try LinearCase(input: [2, 33, channels.0], outChannels: channels.1, hasResidual: true)
            .check(tensorCores().device(), positions: 300)
    }

    @Test(arguments: [(320, 1280), (640, 2560), (1280, 5120)])
    func feedForwardOfStableDiffusion(_ channels: (Int, Int)) throws {
        try LinearCase(input: [1, 40, channels.0], outChannels: channels.1, isGEGLU: true)
            .check(tensorCores().device(), positions: 300)
    }

    /// A layer as large as they come, in the tile and the splits that an H100 would take.
    @Test func smallPictureOfManyChannels() throws {
        var variant = try tensorCores(MatrixTile.all[2])
        variant.matrixTile?.splits = 3
        try ConvolutionCase([2, 8, 8, 1280], 1280, .everything).check(variant, positions: 300)
    }

    @Test(arguments: heads)
    func attention(_ attention: AttentionCase) throws {
        try attention.check(tensorCores(), tolerance: .attentionOnTensorCores)
    }

    @Test(arguments: [false, true])
    func hugeScores(_ isCausal: Bool) throws {
        try AttentionCase(queries: 45, keys: 45, heads: 2, headSize: 40, isCausal: isCausal, deviation: 40)
            .check(tensorCores(), tolerance: .attentionOnTensorCores)
    }

    /// What tensor cores do not take is computed by the kernels for any GPU.
    @Test func otherShapesTakeTheGPUKernels() throws {
        let variant = DeviceVariant(.nvidia, .float16)
        try ConvolutionCase([1, 5, 5, 4], 40).check(variant)
        try ConvolutionCase([1, 3, 5, 7], 11, .everything).check(variant)
        try AttentionCase(queries: 9, keys: 9, heads: 2, headSize: 7).check(variant)
        #expect(throws: KernelError.self) { try ConvolutionCase([1, 5, 5, 4], 40).check(tensorCores()) }
    }

    @Test func selfTestPasses() throws {
        let device = try TensorDevice(testDevice.get(), precision: .float16, family: .nvidia, logger: testLogger)
        #expect(device.tuning.family == .nvidia)
    }

    /// A kernel that computes something else, and one that does not build.
    @Test(arguments: [
        ("convolution_mma.cl", "piece < pieces ?", "piece + 1 < pieces ?"),
        ("convolution_mma.cl", "gates[e] + added[e]", "gates[e]"),
        ("attention_mma.cl", "key + 1 < limit[1]", "key < limit[1]"), ("attention_mma.cl", "#define KEYS 32", "#error"),
    ])
    func selfTestFails(_ file: String, _ right: String, _ wrong: String) throws {
        let directory = try TensorCoreKernels.changed { name, source in
            name == file ? source.replacingOccurrences(of: right, with: wrong) : source
        }
        let log = LogRecorder()
        let device = try TensorDevice(
            testDevice.get(),
            precision: .float16,
            family: .nvidia,
            kernelsDirectory: directory.path,
            logger: log.logger
        )
        #expect(device.tuning.family == .gpu)
        #expect(log.text.contains("tensor cores are not used"))
        let y = try device.upload(HostTensor([1, 1, 1, 8], [Float](repeating: 2, count: 8))).linear(
            device.convolutionWeights([HostTensor([1, 8, 1, 1], [Float](repeating: 3, count: 8))], bias: nil)
        )
        #expect(try y.floats() == [48])
    }
}

/// Keeps what is logged.
private final class LogRecorder: @unchecked Sendable {
    private let lock = NSLock()
    private var lines: [String] = []

    var text: String { lock.withLock { lines.joined(separator: "\n") } }

    var logger: Logger {
        Logger(label: "test") { _ in Handler(recorder: self) }
    }

    private struct Handler: LogHandler {
        let recorder: LogRecorder
        var metadata: Logger.Metadata = [:]
        var logLevel = Logger.Level.warning

        init(recorder: LogRecorder) { self.recorder = recorder }

        subscript(metadataKey key: String) -> Logger.Metadata.Value? {
            get { metadata[key] }
            set { metadata[key] = newValue }
        }

        func log(event: LogEvent) {
            recorder.lock.withLock { recorder.lines.append("\(event.message) \(event.metadata ?? [:])") }
        }
    }
}
