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

/// The logger of all tests.
package let testLogger: Logger = {
    var logger = Logger(label: "test")
    logger.logLevel = .warning
    return logger
}()

extension Trait where Self == ConditionTrait {
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
    /// VEC of the CPU form; nil is the device's own.
    package var vectorWidth: Int?
    /// Local memory the GPU form may take; nil is the device's own.
    package var localMemoryBytes: Int?

    /// A variant; activations are stored as the weights are unless the form takes float32 only.
    package init(_ family: KernelFamily, _ weights: ElementType, vectorWidth: Int? = nil, localMemoryBytes: Int? = nil)
    {
        self.family = family
        self.weights = weights
        self.vectorWidth = vectorWidth
        self.localMemoryBytes = localMemoryBytes
        activations = family == .cpu ? .float32 : weights
    }

    /// Such as "gpu float16".
    package var testDescription: String {
        "\(family) \(weights)" + (vectorWidth.map { " x\($0)" } ?? "")
            + (localMemoryBytes.map { ", \($0) bytes of local memory" } ?? "")
    }

    /// Every form in every storage type.
    package static let all = KernelFamily.allCases.flatMap { family in
        ElementType.allCases.map { DeviceVariant(family, $0) }
    }

    /// The CPU form with vectors of 4 and of 8, which mean other tiles, on any device.
    package static let shorterVectors = [4, 8].map { DeviceVariant(.cpu, .float32, vectorWidth: $0) }

    /// The forms models run in, float32 and half.
    package static let fast = [
        DeviceVariant(.cpu, .float32), DeviceVariant(.cpu, .bfloat16), DeviceVariant(.gpu, .float32),
        DeviceVariant(.gpu, .float16),
    ]

    /// The device in this form, made once, so that its kernels are built once.
    @DeviceActor
    package func device() throws -> TensorDevice {
        if let device = TestDevices.made[self] { return device }
        let hardware = try testDevice.get()
        var tuning = KernelTuning.forDevice(hardware, family: family, vectorWidth: vectorWidth)
        tuning.localMemoryBytes = localMemoryBytes ?? tuning.localMemoryBytes
        let device = try TensorDevice(
            hardware,
            precision: weights,
            activations: activations,
            tuning: tuning,
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
