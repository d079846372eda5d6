// The list of operators that `diffused benchmark --operators` measures against what is known of the models: their weights and their work.

import Foundation
import JSON
import TensorOps
import TestSupport
import Testing

@testable import StableDiffusion

@Suite struct OperatorListTests {
    private static let unet = UNet2DConditionModelConfiguration.stableDiffusion15
    private static let step =
        unet.stepCalls(batch: 2, height: 64, width: 64, contextTokens: 77)
    private static let context = unet.contextCalls(batch: 2, contextTokens: 77)

    /// Elements of a checkpoint's matrices: biases, norms and embeddings multiply nothing.
    private func matrixElements(of part: String, where isUsed: (String) -> Bool = { _ in true }) throws -> Int {
        let checkpoint = try Checkpoint(directory: demoModelPath + "/" + part)
        return checkpoint.files.flatMap(\.entries).filter { $0.value.shape.count >= 2 && isUsed($0.key) }
            .reduce(0) { $0 + $1.value.shape.reduce(1, *) }
    }

    private func weights(_ calls: [OperatorCall]) -> Int { calls.reduce(0) { $0 + $1.weightCount } }
    private func operations(_ calls: [OperatorCall]) -> Double { calls.reduce(0) { $0 + $1.operations } }

    @Test func everyMatrixOfACheckpointIsMultipliedByOnce() throws {
        let model = try ModelConfiguration(folder: demoModelPath)
        #expect(
            try weights(
                model.unet.stepCalls(batch: 2, height: 8, width: 8, contextTokens: 77)
                    + model.unet.contextCalls(batch: 2, contextTokens: 77)
            ) == matrixElements(of: "unet")
        )
        #expect(
            try weights(model.vae.decodeCalls(height: 8, width: 8))
                == matrixElements(of: "vae") { $0.hasPrefix("decoder.") || $0.hasPrefix("post_quant_conv.") }
        )
        #expect(
            try weights(model.textEncoders[0].encodeCalls(batch: 1))
                == matrixElements(of: "text_encoder") { !$0.contains("embedding") }
        )
    }

    /// doc/kernels.md, "Measuring": counted layer by layer, and by onnx-tool.
    @Test func theWorkOfStableDiffusionIsWhatItIsKnownToBe() {
        #expect(abs(operations(Self.step + Self.context) / 1.607e12 - 1) < 0.005)
        #expect(
            abs(
                operations(AutoencoderKLConfiguration.stableDiffusion15.decodeCalls(height: 64, width: 64)) / 2.514e12
                    - 1
            ) < 0.005
        )
        let text = CLIPTextModelConfiguration.stableDiffusion15.encodeCalls(batch: 2)
        #expect(abs(operations(text) / 26.6e9 - 1) < 0.03)
        // 859.52 million parameters, nearly all of them in matrices.
        #expect(abs(Double(weights(Self.step + Self.context)) / 859.52e6 - 1) < 0.002)
    }

    @Test(arguments: [
        ("conv 3x3", 46), ("conv 3x3 stride 2", 3), ("conv 3x3 upsampled", 3), ("conv 1x1", 14), ("group norm", 61),
        ("layer norm", 48), ("self-attention", 16), ("cross-attention", 16), ("linear GEGLU", 16),
        ("concatenation", 12),
        ("elementwise", 3),
    ])
    func callsOfAStep(kind: String, count: Int) {
        #expect(Self.step.filter { $0.kind == kind }.count == count)
    }

    /// 8 x 8 latents, halved three times, are one pixel; odd sizes are rounded up on the way down and met again on the way up.
    @Test(arguments: [(8, 8), (9, 17), (1, 3)])
    func anySizeEndsWhereItBegan(height: Int, width: Int) throws {
        let calls = Self.unet.stepCalls(batch: 2, height: height, width: width, contextTokens: 77)
        let last = try #require(calls.last { $0.kind == "conv 3x3" })
        #expect(last.extents["height"] == height)
        #expect(last.extents["width"] == width)
        #expect(weights(calls) == weights(Self.step))
    }
}

@Suite(.requiresDevice)
@DeviceActor
struct OperatorReportTests {
    /// The demo model's operators: all kinds of calls, small.
    @Test(arguments: [Precision.float32, .float16, .bfloat16])
    func measuresEveryOperatorAndPrintsJSON(_ precision: Precision) throws {
        let model = try ModelConfiguration(folder: demoModelPath)
        let device = try TensorDevice(
            testDevice.get(),
            precision: ElementType(precision),
            logger: testLogger
        )
        let calls =
            model.unet.stepCalls(batch: 2, height: 8, width: 8, contextTokens: 77)
            + model.unet.contextCalls(batch: 2, contextTokens: 77)
        let report = try OperatorReport(
            [
                ("step", calls), ("decode", model.vae.decodeCalls(height: 8, width: 8)),
                ("text", model.textEncoders[0].encodeCalls(batch: 2)),
            ],
            on: device,
            width: 64,
            height: 64,
            precision: precision,
            budgetSeconds: 0.001
        )
        let json = try report.json()
        #expect(try JSONDecoder().decode(OperatorReport.self, from: Data(json.utf8)) == report)
        let value = try JSONValue(parsing: Array(json.utf8))
        #expect(value["peak"]?["float_gflops"]?.doubleValue ?? 0 > 0)
        let rows = try #require(value["parts"]?.arrayValue?.first?["operators"]?.arrayValue)
        #expect(rows.count == Set(calls).count)
        #expect(rows.reduce(0) { $0 + ($1["calls"]?.integerValue ?? 0) } == calls.count)
        let totals = rows.compactMap { $0["total_milliseconds"]?.doubleValue }
        #expect(totals.allSatisfy { $0 > 0 } && totals == totals.sorted(by: >))
        for part in report.parts {
            for row in part.operators { #expect(row.shareOfPeak > 0, "\(row)") }
            #expect(report.table.contains(part.name))
        }
    }
}
