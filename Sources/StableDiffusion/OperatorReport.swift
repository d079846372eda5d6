// Times every operator of Stable Diffusion 1.5 at its shapes and holds it against the device's measured peak: what
// `diffused benchmark --operators` prints. Needs no model.

internal import Foundation
public import Logging
internal import TensorOps

/// The operators of a model on one device, the slowest of each part first.
///
/// Encoded as JSON with the names of `diffused benchmark --operators --json`.
public struct OperatorReport: Codable, Sendable, Equatable {
    /// What the device was measured to do at most.
    public struct Peak: Codable, Sendable, Equatable {
        /// GFLOP/s of float32 multiply-adds in registers.
        public var floatGFLOPS: Double
        /// GFLOP/s of the instruction that multiplies operands of this precision; nil where that is the one above.
        public var matrixGFLOPS: Double?
        /// GB/s read and written by a copy beyond the caches.
        public var copyGBS: Double

        enum CodingKeys: String, CodingKey {
            case floatGFLOPS = "float_gflops"
            case matrixGFLOPS = "matrix_gflops"
            case copyGBS = "copy_gbs"
        }
    }

    /// All calls of one operator with one shape.
    public struct Row: Codable, Sendable, Equatable {
        /// Such as "conv 3x3".
        public var kind: String
        /// Shapes and what is fused.
        public var shape: String
        /// The extents by name.
        public var extents: [String: Int]
        /// Calls in the part.
        public var calls: Int
        /// Milliseconds of one call; the median of the samples.
        public var milliseconds: Double
        /// Samples behind the median.
        public var samples: Int
        /// Milliseconds of all calls.
        public var totalMilliseconds: Double
        /// Operations of matrix products in one call, a multiply-add counted as two, in units of 10^9; 0 where there are none.
        public var gflop: Double
        /// Bytes that one call reads and writes at least, in units of 10^9.
        public var gigabytes: Double
        /// The time that the device's peaks would allow, as a fraction of the time taken: the larger of the shares of both peaks.
        ///
        /// Above 1 where a kernel needs fewer operations than the definition (Winograd), or finds its tensors in a cache.
        public var shareOfPeak: Double

        enum CodingKeys: String, CodingKey {
            case kind, shape, extents, calls, milliseconds, samples, gflop, gigabytes
            case totalMilliseconds = "total_milliseconds"
            case shareOfPeak = "share_of_peak"
        }
    }

    /// The operators of one part of a generation.
    public struct Part: Codable, Sendable, Equatable {
        /// Such as "UNet step".
        public var name: String
        /// Milliseconds of all its calls.
        public var milliseconds: Double
        /// Operations of matrix products of all its calls, in units of 10^9.
        public var gflop: Double
        /// The operators, those that take most time in all first.
        public var operators: [Row]
    }

    /// Name of the device.
    public var device: String
    /// Form of its kernels.
    public var family: String
    /// Storage precision.
    public var precision: String
    /// Width of the picture in pixels.
    public var width: Int
    /// Height of the picture in pixels.
    public var height: Int
    /// The device's peaks.
    public var peak: Peak
    /// A step with guidance, decoding a picture, and what is done once a prompt.
    public var parts: [Part]

    /// Measures on the device of the options; their model is not read.
    ///
    /// - Parameters:
    ///   - width: Of the picture in pixels, a multiple of 8.
    ///   - height: Of the picture in pixels, a multiple of 8.
    /// - Throws: Errors of the device.
    public init(_ options: PipelineOptions, width: Int, height: Int, logger: Logger) throws {
        let device = try TensorDevice(options, logger: logger)
        let parts = OperatorReport.calls(width: width, height: height)
        logger.info("measuring", metadata: ["shapes": "\(parts.reduce(0) { $0 + Set($1.calls).count })"])
        try self.init(parts, on: device, width: width, height: height, precision: options.precision)
    }

    /// Measures calls, in parts, on a device.
    ///
    /// - Parameter budgetSeconds: Time for the samples of one call.
    init(
        _ parts: [(name: String, calls: [OperatorCall])],
        on device: TensorDevice,
        width: Int,
        height: Int,
        precision: Precision,
        budgetSeconds: Double = 0.3
    ) throws {
        let measured = try device.measurePeak()
        let benchmark = OperatorBenchmark(device, budgetSeconds: budgetSeconds)
        self.device = device.name
        family = device.tuning.family.rawValue
        self.precision = precision.rawValue
        self.width = width
        self.height = height
        peak = Peak(
            floatGFLOPS: measured.floatOperations / 1e9,
            matrixGFLOPS: measured.matrixOperations.map { $0 / 1e9 },
            copyGBS: measured.copiedBytes / 1e9
        )
        self.parts = try parts.map { name, calls in
            let counts = Dictionary(calls.map { ($0, 1) }, uniquingKeysWith: +)
            let rows = try counts.map { call, count in
                let time = try benchmark.measure(call)
                let bytes = call.bytes(on: device)
                return Row(
                    kind: call.kind,
                    shape: call.shape,
                    extents: call.extents,
                    calls: count,
                    milliseconds: 1000 * time.seconds,
                    samples: time.samples,
                    totalMilliseconds: 1000 * time.seconds * Double(count),
                    gflop: call.operations / 1e9,
                    gigabytes: bytes / 1e9,
                    shareOfPeak: measured.shortestSeconds(operations: call.operations, bytes: bytes) / time.seconds
                )
            }
            return Part(
                name: name,
                milliseconds: rows.reduce(0) { $0 + $1.totalMilliseconds },
                gflop: rows.reduce(0) { $0 + $1.gflop * Double($1.calls) },
                operators: rows.sorted { $0.totalMilliseconds > $1.totalMilliseconds }
            )
        }
    }

    /// The calls of a generation with Stable Diffusion 1.5 and guidance.
    static func calls(width: Int, height: Int) -> [(name: String, calls: [OperatorCall])] {
        let text = CLIPTextModelConfiguration.stableDiffusion15
        let unet = UNet2DConditionModelConfiguration.stableDiffusion15
        let vae = AutoencoderKLConfiguration.stableDiffusion15
        let (latentWidth, latentHeight) = (width / vae.scaleFactor, height / vae.scaleFactor)
        let tokens = text.maxPositionEmbeddings
        return [
            (
                "UNet step",
                unet.stepCalls(batch: 2, height: latentHeight, width: latentWidth, contextTokens: tokens)
            ),
            ("VAE decode", vae.decodeCalls(height: latentHeight, width: latentWidth)),
            ("prompts", text.encodeCalls(batch: 2) + unet.contextCalls(batch: 2, contextTokens: tokens)),
        ]
    }

    /// The report as one JSON object.
    public func json() throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        return String(decoding: try encoder.encode(self), as: UTF8.self)
    }

    /// The report as tables for a terminal: for each part the kinds of operators, then every shape.
    public var table: String {
        var lines = [
            "device     \(device), \(family) kernels",
            "precision  \(precision)",
            "size       \(width)x\(height), Stable Diffusion 1.5",
            String(format: "peak       %.1f GFLOP/s float32 multiply-adds in registers", peak.floatGFLOPS)
                + (peak.matrixGFLOPS.map { String(format: ", %.1f GFLOP/s \(precision) products", $0) } ?? "")
                + String(format: ", %.1f GB/s copied (read and written)", peak.copyGBS),
        ]
        for part in parts {
            lines += [
                "",
                String(
                    format: "\(part.name): %.1f ms, %.1f GFLOP, %.1f GFLOP/s, %.0f %% of the peak",
                    part.milliseconds,
                    part.gflop,
                    part.gflop / part.milliseconds * 1000,
                    100 * share(part.operators)
                ),
                "  total ms       %  calls  GFLOP/s    GB/s  of peak  kind",
            ]
            let kinds = Dictionary(grouping: part.operators, by: \.kind)
            for (kind, rows) in kinds.sorted(by: { total($0.value) > total($1.value) }) {
                lines.append(line(rows, of: part, name: kind))
            }
            lines += ["", "  total ms       %  calls  GFLOP/s    GB/s  of peak  ms a call  operator"]
            for row in part.operators {
                let name = String(format: "%9.3f  ", row.milliseconds) + "\(row.kind), \(row.shape)"
                lines.append(line([row], of: part, name: name))
            }
        }
        return lines.joined(separator: "\n")
    }

    private func line(_ rows: [Row], of part: Part, name: String) -> String {
        let milliseconds = total(rows)
        let gflop = rows.reduce(0) { $0 + $1.gflop * Double($1.calls) }
        let gigabytes = rows.reduce(0) { $0 + $1.gigabytes * Double($1.calls) }
        return String(format: "%10.2f  %6.1f %6d", milliseconds, 100 * milliseconds / part.milliseconds, calls(rows))
            + (gflop > 0 ? String(format: "%9.1f", gflop / milliseconds * 1000) : "        -")
            + String(format: "%8.1f %6.0f %%  ", gigabytes / milliseconds * 1000, 100 * share(rows)) + name
    }

    private func total(_ rows: [Row]) -> Double { rows.reduce(0) { $0 + $1.totalMilliseconds } }

    private func calls(_ rows: [Row]) -> Int { rows.reduce(0) { $0 + $1.calls } }

    /// The share of the peak of several operators: what the peaks would allow in all over what was taken in all.
    private func share(_ rows: [Row]) -> Double {
        rows.reduce(0) { $0 + $1.shareOfPeak * $1.totalMilliseconds } / total(rows)
    }
}
