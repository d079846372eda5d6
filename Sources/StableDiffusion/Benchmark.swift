// Times the parts of a generation on a model and device: what `diffused benchmark` prints.

internal import Foundation
public import Logging
internal import TensorOps

/// Times and memory of one model on one device.
///
/// Encoded as JSON with the names of `diffused benchmark --json`.
public struct BenchmarkReport: Codable, Sendable, Equatable {
    /// Name of the device.
    public var device: String
    /// Storage precision.
    public var precision: String
    /// Width of the picture in pixels.
    public var width: Int
    /// Height of the picture in pixels.
    public var height: Int
    /// Steps of the whole picture.
    public var steps: Int
    /// Loading the model, in seconds.
    public var loadSeconds: Double
    /// Encoding prompt and negative prompt, in seconds; the median.
    public var textEncoderSeconds: Double
    /// One step with guidance, in seconds; the median.
    public var unetStepSeconds: Double
    /// Decoding the latents, in seconds; the median.
    public var vaeDecodeSeconds: Double
    /// A whole picture of `steps` steps, in seconds.
    public var totalSeconds: Double
    /// The most device memory allocated at once, in bytes.
    public var peakDeviceBytes: Int
    /// The most memory the process had resident, in bytes.
    public var peakResidentBytes: Int

    enum CodingKeys: String, CodingKey {
        case device, precision, width, height, steps
        case loadSeconds = "load_seconds"
        case textEncoderSeconds = "text_encoder_seconds"
        case unetStepSeconds = "unet_step_seconds"
        case vaeDecodeSeconds = "vae_decode_seconds"
        case totalSeconds = "total_seconds"
        case peakDeviceBytes = "peak_device_bytes"
        case peakResidentBytes = "peak_resident_bytes"
    }

    /// Loads a model and draws one picture after a step that builds the kernels.
    ///
    /// - Parameters:
    ///   - options: Model, device, precision.
    ///   - width: Width in pixels; nil for the model's own.
    ///   - height: Height in pixels; nil for the model's own.
    ///   - steps: Steps of the picture.
    /// - Throws: What loading and generating throw.
    public init(_ options: PipelineOptions, width: Int?, height: Int?, steps: Int, logger: Logger) throws {
        let clock = ContinuousClock()
        func seconds(_ body: () throws -> Void) rethrows -> Double { try clock.measure(body) / .seconds(1) }

        var loaded: StableDiffusionPipeline?
        loadSeconds = try seconds { loaded = try StableDiffusionPipeline(options, logger: logger) }
        guard let pipeline = loaded else { throw GenerationError.deviceFailed(reason: "the model was not loaded") }
        let model = pipeline.model
        var request = GenerationRequest(
            prompt: "a red circle on a blue background",
            negativePrompt: "blurry",
            width: width ?? model.nativeSize,
            height: height ?? model.nativeSize,
            steps: 1,
            guidanceScale: 7.5,
            seed: Seed(UInt64(0))
        )
        // Kernels are built at their first use.
        let warmUp = try pipeline.prepare(request)
        try warmUp.step()
        _ = try warmUp.decode()

        request.steps = steps
        textEncoderSeconds = try median(
            (0..<3).map { _ in
                try seconds {
                    _ = try pipeline.encode(request)
                    try pipeline.device.finish()
                }
            }
        )
        let start = clock.now
        let generation = try pipeline.prepare(request)
        unetStepSeconds = try median((0..<generation.totalSteps).map { _ in try seconds { try generation.step() } })
        let firstDecode = try seconds { _ = try generation.decode() }
        totalSeconds = (clock.now - start) / .seconds(1)
        vaeDecodeSeconds = try median([firstDecode] + (0..<2).map { _ in try seconds { _ = try generation.decode() } })

        device = model.deviceName
        precision = model.precision.rawValue
        self.width = request.width
        self.height = request.height
        self.steps = steps
        peakDeviceBytes = pipeline.device.peakBytes
        peakResidentBytes = BenchmarkReport.peakResidentBytes()
    }

    /// The report as one JSON object.
    public func json() throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        return String(decoding: try encoder.encode(self), as: UTF8.self)
    }

    /// The report as a table for a terminal.
    public var table: String {
        func row(_ name: String, _ value: String) -> String {
            name.padding(toLength: 22, withPad: " ", startingAt: 0) + value
        }
        func time(_ seconds: Double) -> String { String(format: "%9.3f s", seconds) }
        func memory(_ bytes: Int) -> String { String(format: "%9.2f GiB", Double(bytes) / 1_073_741_824) }
        return [
            row("device", device), row("precision", precision), row("size", "\(width)x\(height)"),
            row("load", time(loadSeconds)), row("text encoder", time(textEncoderSeconds)),
            row("UNet step", time(unetStepSeconds)), row("VAE decode", time(vaeDecodeSeconds)),
            row("whole, \(steps) steps", time(totalSeconds)), row("peak device memory", memory(peakDeviceBytes)),
            row("peak resident memory", memory(peakResidentBytes)),
        ].joined(separator: "\n")
    }

    /// The kernel's high-water mark of this process, 0 where it is not known.
    private static func peakResidentBytes() -> Int {
        guard let status = try? String(contentsOfFile: "/proc/self/status", encoding: .utf8),
            let line = status.split(separator: "\n").first(where: { $0.hasPrefix("VmHWM:") }),
            let kibibytes = line.split(separator: " ").dropFirst().first.flatMap({ Int($0) })
        else { return 0 }
        return kibibytes * 1024
    }
}

private func median(_ values: [Double]) -> Double {
    values.sorted()[values.count / 2]
}

/// Every device and which one would be chosen, as text for a terminal.
///
/// - Throws: An error that says what to install when there is no device.
public func describeDevices(_ options: DeviceOptions = DeviceOptions()) throws -> String {
    try TensorDevice.describeDevices(platform: options.platform, index: options.index)
}
