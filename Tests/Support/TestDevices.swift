// The devices the tests run on: which one, in which forms and storage types, and the one executor that may use them.

package import Logging
package import OpenCLRuntime
package import TensorOps
package import Testing

internal import Foundation

/// Everything that belongs to an OpenCL queue is used from one executor only: the tests' is this actor.
///
/// A suite marked with it runs its tests one after another, also against other suites so marked.
@globalActor
package actor DeviceActor {
    /// The one instance.
    package static let shared = DeviceActor()
}

/// The device of all tests: the preferred one of the platform that `DIFFUSED_TEST_PLATFORM` names a part of, or of any.
package let testDevice: Result<Device, any Error> = Result {
    try Device.choose(platform: ProcessInfo.processInfo.environment["DIFFUSED_TEST_PLATFORM"])
}

/// Whether that device is a GPU, where the forms for GPUs are quick.
package var testDeviceIsGPU: Bool {
    if case .success(let device) = testDevice { device.kind == .gpu } else { false }
}

/// Where tests that load models keep built kernels, so that each is built once on a platform that keeps none itself.
package let testCacheDirectory: String = {
    let environment = ProcessInfo.processInfo.environment
    let cache = environment["XDG_CACHE_HOME"] ?? (environment["HOME"] ?? NSTemporaryDirectory()) + "/.cache"
    return cache + "/diffused/tests"
}()

/// The logger of all tests.
package let testLogger: Logger = {
    var logger = Logger(label: "test")
    logger.logLevel = .warning
    return logger
}()

/// Whether the device runs the NVIDIA form: by its tensor cores, or by emulation as Intel's runtime for processors can.
package var testDeviceRunsTensorCoreKernels: Bool {
    guard case .success(let device) = testDevice else { return false }
    if let capability = device.computeCapability { return capability >= KernelTuning.leastComputeCapability }
    return device.kind == .cpu && device.extensions.contains("cl_intel_required_subgroup_size")
}

extension Trait where Self == ConditionTrait {
    /// Skips where the kernels for tensor cores can neither run nor be emulated.
    package static var requiresTensorCoreKernels: Self {
        .enabled(
            if: testDeviceRunsTensorCoreKernels,
            "they run on NVIDIA GPUs and, emulated, on Intel's OpenCL runtime for processors: scripts/test intel"
        )
    }

    /// Skips where no OpenCL driver is installed.
    ///
    /// A platform that is asked for and not there fails instead.
    package static var requiresDevice: Self {
        .enabled("no OpenCL device found; install one, for instance Debian's pocl-opencl-icd") {
            if case .failure(DeviceSelectionError.noDevices) = testDevice { return false }
            return true
        }
    }
}

/// A form of the kernels with its storage types.
package struct DeviceVariant: Hashable, Sendable, CustomTestStringConvertible {
    /// The form.
    package let family: KernelFamily
    /// Storage of activations.
    package let activations: ElementType
    /// Storage of weights.
    package let weights: ElementType
    /// Storage of what matrix products and attention read.
    package let operands: ElementType
    /// VEC of the CPU form; nil is the device's own.
    package var vectorWidth: Int?
    /// Local memory the GPU form may take; nil is the device's own.
    package var localMemoryBytes: Int?
    /// Tiles from which on convolutions take Winograd's way; nil for never.
    package var winogradTiles: Int?
    /// Memory of a strip of Winograd's tiles; nil is the device's own.
    package var winogradStripBytes: Int?
    /// The tile of the NVIDIA form's convolutions; nil chooses by shape.
    package var matrixTile: MatrixTile?
    /// A directory of kernels instead of the embedded ones.
    package var kernelsDirectory: String?

    /// A variant; activations are stored as the weights are unless the form takes float32 only, and operands as activations.
    package init(
        _ family: KernelFamily,
        _ weights: ElementType,
        operands: ElementType? = nil,
        vectorWidth: Int? = nil,
        localMemoryBytes: Int? = nil,
        winogradTiles: Int? = nil,
        winogradStripBytes: Int? = nil
    ) {
        self.family = family
        self.weights = weights
        self.vectorWidth = vectorWidth
        self.localMemoryBytes = localMemoryBytes
        self.winogradTiles = winogradTiles
        self.winogradStripBytes = winogradStripBytes
        activations = family == .cpu ? .float32 : weights
        self.operands = operands ?? activations
    }

    /// Such as "gpu float16".
    package var testDescription: String {
        "\(family) \(weights)" + (operands == activations ? "" : " pairs") + (winogradTiles == nil ? "" : " Winograd")
            + (vectorWidth.map { " x\($0)" } ?? "")
            + (matrixTile.map { ", tile \($0.rows)x\($0.columns), \($0.splits) splits" } ?? "")
            + (localMemoryBytes.map { ", \($0) bytes of local memory" } ?? "")
    }

    /// The forms that any OpenCL device runs.
    package static let portable: [KernelFamily] = [.plain, .cpu, .gpu]

    /// Every such form in every storage type.
    package static let all =
        portable.flatMap { family in ElementType.allCases.map { DeviceVariant(family, $0) } } + [pairs]

    /// The CPU form that multiplies pairs of bfloat16: by the processor's instruction where it has it, else by two multiplications.
    package static let pairs = DeviceVariant(.cpu, .bfloat16, operands: .bfloat16)

    /// The CPU form with vectors of 4 and of 8, which mean other tiles, on any device.
    package static let shorterVectors = [4, 8].map { DeviceVariant(.cpu, .float32, vectorWidth: $0) }

    /// The forms models run in, float32 and half.
    package static let fast = [
        DeviceVariant(.cpu, .float32), DeviceVariant(.cpu, .bfloat16), DeviceVariant(.gpu, .float32),
        DeviceVariant(.gpu, .float16), pairs,
    ]

    /// The device in this form, made once, so that its kernels are built once.
    @DeviceActor
    package func device() throws -> TensorDevice {
        if let device = TestDevices.made[self] { return device }
        let hardware = try testDevice.get()
        var tuning = KernelTuning.forDevice(hardware, family: family, vectorWidth: vectorWidth)
        tuning.localMemoryBytes = localMemoryBytes ?? tuning.localMemoryBytes
        tuning.winogradTiles = winogradTiles
        tuning.winogradStripBytes = winogradStripBytes ?? tuning.winogradStripBytes
        tuning.matrixTile = matrixTile
        let device = try TensorDevice(
            hardware,
            precision: weights,
            activations: activations,
            operands: operands,
            tuning: tuning,
            kernelsDirectory: kernelsDirectory,
            logger: testLogger
        )
        TestDevices.made[self] = device
        return device
    }
}

@DeviceActor
private enum TestDevices {
    static var made: [DeviceVariant: TensorDevice] = [:]
}
