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

/// Edges of tiles and of steps of 32 channels: of one pixel or channel, one more or less than a tile, whole and not.
private let edges = [
    ConvolutionCase([1, 1, 1, 8], 1),
    ConvolutionCase([2, 9, 11, 24], 65, stride: 2, hasBias: false),
    ConvolutionCase([3, 7, 7, 32], 33),
    ConvolutionCase([1, 5, 13, 40], 128),
    ConvolutionCase([1, 1, 63, 72], 132, stride: 2),
    ConvolutionCase([1, 6, 10, 40], 72, stride: 2, padding: .after),
]

/// Input and output channels of the UNet's 3x3 convolutions (SD 1.5 and 2.1) and of the VAE decoder's; 96 stands for output channels that
/// another pair has.
private let pairs3x3 = [
    (320, 320), (320, 640), (640, 640), (640, 1280), (1280, 1280), (1280, 640), (960, 96), (1920, 96), (2560, 96),
    (320, 4),
    (512, 512), (512, 256), (256, 256), (256, 128), (128, 128), (128, 3),
]

/// Of its 1x1 convolutions and linear layers, among them the text encoders'.
private let pairs1x1 = [
    (320, 320), (320, 960), (640, 1280), (640, 1920), (1280, 1280), (1280, 320), (960, 640), (1920, 640), (2560, 640),
    (5120, 96), (768, 2304), (768, 3072), (3072, 96), (1024, 96), (512, 256), (256, 128),
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
    /// Everything that may be fused and an enlargement, with more pixels and channels than a tile has.
    @Test(arguments: MatrixTile.all)
    func everyTile(_ tile: MatrixTile) throws {
        try ConvolutionCase([2, 5, 8, 72], 140, to: (9, 15), .everything).check(tensorCores(tile), positions: 1000)
    }

    @Test func sumsInParts() throws {
        var parts = MatrixTile.all[2]
        parts.splits = 3
        try ConvolutionCase([2, 5, 8, 72], 140, to: (9, 15), .everything).check(tensorCores(parts), positions: 1000)
    }

    @Test(arguments: edges)
    func awkwardShapes(_ convolution: ConvolutionCase) throws {
        try convolution.check(tensorCores(MatrixTile.all[2]), positions: 1000)
    }

    /// Channels that a lane's four do not divide, in everything that loads or stores them.
    @Test func channelsThatAreNotWhole() throws {
        try ConvolutionCase([2, 3, 5, 16], 37, to: (5, 6), .everything).check(tensorCores(MatrixTile.all[2]))
    }

    @Test(arguments: pairs3x3)
    func convolutionsOfStableDiffusion(_ channels: (Int, Int)) throws {
        try ConvolutionCase([1, 6, 6, channels.0], channels.1).check(tensorCores(MatrixTile.all[2]), positions: 300)
    }

    @Test(arguments: [(320, 320), (640, 640), (1280, 1280)])
    func samplingOfStableDiffusion(_ channels: (Int, Int)) throws {
        let variant = try tensorCores(MatrixTile.all[2])
        try ConvolutionCase([1, 8, 8, channels.0], channels.1, stride: 2).check(variant, positions: 300)
        try ConvolutionCase([1, 3, 3, channels.0], channels.1, to: (6, 6)).check(variant, positions: 300)
    }

    @Test(arguments: pairs1x1)
    func linearLayersOfStableDiffusion(_ channels: (Int, Int)) throws {
        try LinearCase(input: [2, 33, channels.0], outChannels: channels.1, hasResidual: true)
            .check(tensorCores(MatrixTile.all[2]).device(), positions: 300)
    }

    /// As the timestep's layers are: one row a picture; and one more than a work-group has.
    @Test(arguments: [([1, 1, 320], 1280), ([2, 1, 1280], 640), ([5, 1, 40], 33), ([1, 16, 1288], 72)])
    func linearLayersOfFewRows(_ input: [Int], _ outChannels: Int) throws {
        try LinearCase(input: input, outChannels: outChannels, hasResidual: outChannels % 4 != 0)
            .check(tensorCores(MatrixTile.all[2]).device())
    }

    @Test(arguments: [(320, 1280), (640, 2560), (1280, 120)])
    func feedForwardOfStableDiffusion(_ channels: (Int, Int)) throws {
        try LinearCase(input: [1, 40, channels.0], outChannels: channels.1, isGEGLU: true)
            .check(tensorCores(MatrixTile.all[2]).device(), positions: 300)
    }

    @Test(arguments: [(16, 24), (40, 36)])
    func gatesApart(_ channels: (Int, Int)) throws {
        try expectGatesApart(tensorCores(MatrixTile.all[2]).device(), .float16, channels)
    }

    /// A layer of many channels and a small picture, in the tile and the splits that are chosen for it.
    @Test func chosenTile() throws {
        try ConvolutionCase([2, 8, 8, 1280], 1280, .everything).check(tensorCores(), positions: 300)
    }

    /// Small pictures fill a large GPU only in parts; large ones are never split.
    @Test func tilesFillTheDevice() throws {
        var tuning = KernelTuning.forDevice(try testDevice.get(), precision: .float16, family: .nvidia)
        tuning.computeUnits = 132
        for (rows, columns, steps) in [(8192, 320, 90), (2048, 640, 180), (512, 1280, 360), (128, 1280, 360)] {
            let tile = tuning.matrixTile(rows: rows, columns: columns, steps: steps)
            let groups =
                (rows + tile.rows - 1) / tile.rows * ((columns + tile.columns - 1) / tile.columns) * tile.splits
            #expect(groups * tile.warps >= 4 * 132, "\(rows) x \(columns): \(tile)")
        }
        #expect(tuning.matrixTile(rows: 262_144, columns: 128, steps: 36) == MatrixTile.all[0])
        tuning.computeUnits = 1
        #expect(tuning.matrixTile(rows: 8192, columns: 320, steps: 90).splits == 1)
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
        // The other tests' devices cannot compute these.
        #expect(throws: KernelError.self) { try ConvolutionCase([1, 5, 5, 4], 40).check(tensorCores()) }
    }

    @Test func selfTestPasses() throws {
        let device = try TensorDevice(testDevice.get(), precision: .float16, family: .nvidia, logger: testLogger)
        #expect(device.tuning.family == .nvidia)
    }

    /// A kernel that computes something else, and one that does not build.
    @Test(arguments: [
        ("convolution_mma.cl", "piece < pieces ?", "piece + 1 < pieces ?"),
        ("convolution_mma.cl", "#define PANEL 32", "#error"),
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

@Suite(.requiresDevice)
@DeviceActor
struct TensorCoreFallbackTests {
    /// Where neither the instruction nor sub-groups of 32 are, the self-test ends in the GPU family.
    @Test(.enabled(if: !testDeviceRunsTensorCoreKernels, "the device runs the kernels for tensor cores"))
    func devicesWithoutTensorCores() throws {
        let log = LogRecorder()
        let device = try TensorDevice(testDevice.get(), precision: .float16, family: .nvidia, logger: log.logger)
        #expect(device.tuning.family == .gpu)
        #expect(log.text.contains("tensor cores are not used") && log.text.contains("refused Kernels/"))
    }

    /// Only float16 on an NVIDIA GPU of compute capability 8.0 chooses the family by itself.
    @Test(arguments: ElementType.allCases)
    func chosenByCapability(_ precision: ElementType) throws {
        let device = try testDevice.get()
        let hasTensorCores = device.computeCapability.map { $0 >= KernelTuning.leastComputeCapability } ?? false
        let family = KernelTuning.forDevice(device, precision: precision).family
        #expect((family == .nvidia) == (hasTensorCores && precision == .float16))
        #expect(ComputeCapability(major: 7, minor: 5) < KernelTuning.leastComputeCapability)
        #expect(ComputeCapability(major: 12, minor: 0) >= KernelTuning.leastComputeCapability)
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
