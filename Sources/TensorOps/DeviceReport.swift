// Devices for the layers above, which know no OpenCL: opening the configured one, describing all, and what a failure means.

internal import Foundation
public import Logging
internal import OpenCLRuntime

/// What went wrong on a device, as far as the layers above can act on it.
public enum DeviceFailure: Sendable, Equatable {
    /// An allocation of `bytes` was refused; nil where a driver that allocates late refused to run a kernel instead.
    case outOfMemory(bytes: Int?, reason: String)
    /// Anything else a driver or its compiler reports.
    case failed(reason: String)

    /// The failure behind an error that operators threw; nil if the error does not come from the device.
    public init?(_ error: any Error) {
        switch error {
        case let error as OpenCLError where error.status.isOutOfMemory:
            self = .outOfMemory(bytes: error.requestedBytes, reason: error.description)
        case let error as OpenCLError: self = .failed(reason: error.description)
        case let error as KernelError: self = .failed(reason: error.description)
        default: return nil
        }
    }
}

extension TensorDevice {
    /// Opens the device that a configuration asks for.
    ///
    /// - Parameters:
    ///   - platform: Part of a platform's name; nil for any.
    ///   - index: Position within the platform, or among all devices; nil for the best.
    ///   - precision: Storage of weights, and of activations where the device's kernels can.
    ///   - cacheDirectory: Where built kernels are kept; nil keeps none.
    /// - Throws: `DeviceSelectionError`, whose description says what was looked for and what to install; `OpenCLError`.
    public convenience init(
        platform: String?,
        index: Int?,
        precision: ElementType,
        kernelsDirectory: String?,
        cacheDirectory: String?,
        logger: Logger
    ) throws {
        let device = try Device.choose(platform: platform, index: index)
        try self.init(
            device,
            precision: precision,
            kernelsDirectory: kernelsDirectory,
            cacheDirectory: cacheDirectory,
            buildsInBackground: device.buildsInParallel,
            logger: logger
        )
    }

    /// Name of the device.
    public var name: String { queue.device.name }

    /// Blocks until everything enqueued has run.
    public func finish() throws {
        try queue.finish()
    }

    /// Whether nothing is computed at present but what it would take; see `memoryNeed(of:)`.
    public var isDryRun: Bool { queue.isDryRun }

    /// Kernels enqueued so far: with the time of the thread that enqueued them, what a launch costs the host.
    public var launchCount: Int { queue.launchCount }

    /// Gives memory that no tensor uses back to the device.
    public func releaseUnusedMemory() {
        pool.removeAll()
    }

    /// The most bytes of device memory that were allocated at once.
    public var peakBytes: Int { queue.peakBytes }

    /// Every platform and device, what each can do, and which one would be chosen and why, as text for a terminal.
    ///
    /// - Throws: `DeviceSelectionError` when there is no device, `OpenCLError`.
    public static func describeDevices(platform: String? = nil, index: Int? = nil) throws -> String {
        let chosen = try Device.choose(platform: platform, index: index)
        var lines: [String] = []
        for device in try Device.all() {
            let tuning = KernelTuning.forDevice(device)
            let half = device.extensions.contains("cl_khr_fp16") ? "storage and arithmetic" : "storage only"
            let form =
                tuning.family == .cpu
                ? "register tiles of \(tuning.tileRows) x \(tuning.panelWidth), vectors of \(tuning.vectorWidth) floats"
                : "local-memory tiles of 64 x \(tuning.panelWidth)"
            lines += [
                "\(device.globalIndex)  \(device.name)\(device.globalIndex == chosen.globalIndex ? "  <- chosen" : "")",
                "   platform   \(device.platformName) (index \(device.platformIndex) in it)",
                "   version    \(device.version), driver \(device.driverVersion)",
                "   processor  \(device.kind.rawValue), \(device.computeUnits) compute units"
                    + (device.maxClockMHz > 0 ? " at up to \(device.maxClockMHz) MHz" : ""),
                "   memory     \(gibibytes(device.globalMemoryBytes)), largest allocation "
                    + "\(gibibytes(device.maxAllocationBytes)), local \(device.localMemoryBytes / 1024) KiB",
                "   precision  float32, float16 (\(half)), bfloat16 (storage only)",
                "   kernels    \(tuning.family.rawValue) family: \(form)",
            ]
            if let capability = device.computeCapability {
                let family = KernelTuning.forDevice(device, precision: .float16).family
                lines.append(
                    "   tensor     compute capability \(capability): "
                        + (family == .nvidia
                            ? "with precision float16 the nvidia family, mma.sync, if it passes its self-test at start"
                            : "before \(KernelTuning.leastComputeCapability), so tensor cores are not used")
                )
            }
            lines.append("")
        }
        let reason =
            if platform != nil || index != nil {
                "the configuration names it (device.platform, device.index)"
            } else {
                "GPUs come before other accelerators, these before processors; among equals the one with most compute units"
            }
        lines.append("Device \(chosen.globalIndex) would be used: \(reason).")
        return lines.joined(separator: "\n")
    }

    private static func gibibytes(_ bytes: Int) -> String {
        String(format: "%.1f GiB", Double(bytes) / 1_073_741_824)
    }
}
