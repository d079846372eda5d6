// Pictures from pictures against diffusers 0.42.1 (scripts/fixtures/pictures.py): the autoencoder's encoder, image to image, inpainting by ordinary
// models and by those made for it.

import Foundation
import JSON
@testable import StableDiffusion
import TensorOps
import TestSupport
import Testing

@Suite(.requiresDevice) @DeviceActor
struct PictureGenerationTests {
    /// A model of the fixture, with its encoder, and what was recorded with it.
    private struct Recorded {
        let fixture: JSONValue
        let description: JSONValue
        let width: Int
        let height: Int

        init(_ model: String) throws {
            fixture = try Fixture.json("pictures.json")
            description = try #require(
                fixture["models"]?.arrayValue?.first { $0["model"]?.stringValue == model }
            )
            width = try #require(description["width"]?.integerValue)
            height = try #require(description["height"]?.integerValue)
        }

        func checkpoint(forInpainting: Bool) throws -> RandomCheckpoint {
            let unet = description["tensors"]?["inpainting_unet"] ?? []
            return try RandomCheckpoint(
                description["model"]?.stringValue ?? "",
                unet: forInpainting ? ["config": ["in_channels": 9], "tensors": unet] : [:],
                vae: description["tensors"]?["vae"] ?? []
            )
        }

        func values(_ name: String) throws -> (values: [Double], stride: Int) {
            let entry = try #require(fixture["values"]?.arrayValue?.first { $0["name"]?.stringValue == name })
            let start = try #require(entry["offset"]?.integerValue) / 4
            let count = try #require(entry["count"]?.integerValue)
            let floats = try Fixture.floats("pictures.floats")
            return (floats[start..<(start + count)].map { Double($0) }, entry["stride"]?.integerValue ?? 1)
        }

        /// The picture and the mask of the script.
        func source(strength: Double, hasMask: Bool) -> SourcePicture {
            var pixels: [UInt8] = []
            var mask: [UInt8] = []
            for y in 0..<height {
                for x in 0..<width {
                    for c in 0..<3 { pixels.append(UInt8((x * 3 + y * 5 * (c + 1) + x * y % 17 * 4) % 256)) }
                    let isDrawn = height / 8..<height * 5 / 8 ~= y && width / 4..<width * 3 / 4 ~= x
                    mask.append(isDrawn ? 255 : 0)
                }
            }
            return SourcePicture(pixels: pixels, mask: hasMask ? mask : nil, strength: strength)
        }
    }

    private func pipeline(_ checkpoint: RandomCheckpoint, _ precision: Precision = .float32) throws
        -> StableDiffusionPipeline
    {
        var options = PipelineOptions(modelPath: checkpoint.path, precision: precision)
        options.device.gemm = .builtin
        options.device.platform = ProcessInfo.processInfo.environment["DIFFUSED_TEST_PLATFORM"]
        options.cacheDirectory = testCacheDirectory
        return try StableDiffusionPipeline(options, logger: testLogger)
    }

    private func request(_ recorded: Recorded, _ run: JSONValue? = nil) throws -> GenerationRequest {
        var request = GenerationRequest(
            prompt: "a red circle on a blue background",
            negativePrompt: "blurry",
            width: recorded.width,
            height: recorded.height,
            steps: run?["steps"]?.integerValue ?? 2,
            guidanceScale: 5,
            seed: Seed(UInt64(42))
        )
        request.source = recorded.source(
            strength: run?["strength"]?.doubleValue ?? 0.5,
            hasMask: run?["mask"]?.boolValue ?? false
        )
        if let name = run?["sampler"]?.stringValue { request.sampler = try #require(Sampler(rawValue: name)) }
        return request
    }

    @Test(arguments: ["sd1", "xl"])
    func everyRunEndsInTheLatentsOfDiffusers(_ model: String) throws {
        let recorded = try Recorded(model)
        let runs = try #require(recorded.description["runs"]?.arrayValue)
        for forInpainting in [false, true] {
            let own = runs.enumerated().filter { ($0.element["inpainting_unet"]?.boolValue ?? false) == forInpainting }
            if own.isEmpty { continue }
            let pipeline = try pipeline(recorded.checkpoint(forInpainting: forInpainting))
            for (index, run) in own {
                let request = try request(recorded, run)
                let generation = try #require(try pipeline.prepare(request) as? PictureGeneration)
                while generation.completedSteps < generation.totalSteps { try generation.step() }
                let (expected, stride) = try recorded.values("\(model).\(index)")
                let latents = try generation.latents.floats()
                let sampled = Swift.stride(from: 0, to: latents.count, by: stride).map { latents[$0] }
                expectClose(sampled, expected, Tolerance(nmse: 1e-8, peak: 1e-2), run.serialized)
                let picture = try generation.decode()
                #expect(picture.width == request.width && picture.pixels.count == request.width * request.height * 3)
            }
        }
    }

    @Test(arguments: ["sd1", "xl"])
    func theEncoderIsThatOfDiffusers(_ model: String) throws {
        let recorded = try Recorded(model)
        let pipeline = try pipeline(recorded.checkpoint(forInpainting: false))
        #expect(pipeline.encoder == nil)
        let request = try request(recorded)
        _ = try pipeline.prepare(request)
        let encoder = try #require(pipeline.encoder)
        let pixels = try #require(request.source).pixels.map { Float($0) / 255 * 2 - 1 }
        let moments = try encoder(
            pipeline.device.tensor(pixels, shape: [1, request.height, request.width, 3], type: .float32)
        ).floats()
        let (expected, stride) = try recorded.values("\(model).moments")
        let sampled = Swift.stride(from: 0, to: moments.count, by: stride).map { moments[$0] }
        expectClose(sampled, expected, Tolerance(nmse: 1e-10, peak: 1e-4))
    }

    /// What a mask leaves is encoded and decoded, not drawn; what it takes is the same as without it, at full strength.
    @Test func onlyWhatTheMaskSaysIsDrawnAnew() throws {
        let recorded = try Recorded("sd1")
        let pipeline = try pipeline(recorded.checkpoint(forInpainting: false), .float16)
        var request = try request(recorded)
        var pictures: [[Float]] = []
        for seed in 1...2 {
            request.seed = Seed(UInt64(seed))
            request.source = recorded.source(strength: 1, hasMask: true)
            let generation = try #require(try pipeline.prepare(request) as? PictureGeneration)
            while generation.completedSteps < generation.totalSteps { try generation.step() }
            pictures.append(try generation.latents.floats())
        }
        // Of two seeds the drawn parts have nothing in common; the others differ by what is drawn from the encoder's distribution.
        let scale = 8
        func difference(isDrawn: Bool) -> Float {
            var (sum, count) = (Float(0), Float(0))
            for y in 0..<request.height / scale {
                for x in 0..<request.width / scale {
                    let inside =
                        request.height / 8..<request.height * 5 / 8 ~= y * scale
                        && request.width / 4..<request.width * 3 / 4 ~= x * scale
                    guard inside == isDrawn else { continue }
                    let index = (y * request.width / scale + x) * 4
                    for channel in 0..<4 { sum += abs(pictures[0][index + channel] - pictures[1][index + channel]) }
                    count += 4
                }
            }
            return sum / count
        }
        #expect(difference(isDrawn: true) > 3 * difference(isDrawn: false))
    }

    @Test func whatIsWrongWithASourceIsSaidBeforeTheDeviceIsUsed() throws {
        let recorded = try Recorded("sd1")
        let pipeline = try pipeline(recorded.checkpoint(forInpainting: false))
        for (field, change) in [
            ("image", { $0.pixels.removeLast() }), ("mask", { $0.mask?.append(0) }), ("strength", { $0.strength = 0 }),
            ("strength", { $0.strength = 1.01 }), ("strength", { $0.strength = .nan }),
            ("strength", { $0.strength = 0.1 }),
        ] as [(String, (inout SourcePicture) -> Void)] {
            var request = try request(recorded)
            request.source = recorded.source(strength: 0.5, hasMask: true)
            if var source = request.source {
                change(&source)
                request.source = source
            }
            let error = try #require(throws: GenerationError.self) { try pipeline.prepare(request) }
            guard case .invalid(field, _) = error else {
                Issue.record("\(error)")
                continue
            }
        }
        #expect(pipeline.encoder == nil)
    }

    /// A model whose files have no encoder draws all the same, and says what it lacks when it is given a picture.
    @Test func aModelWithoutAnEncoderSaysSo() throws {
        let recorded = try Recorded("sd1")
        let pipeline = try pipeline(RandomCheckpoint.shared("sd1"))
        var request = try request(recorded)
        let error = try #require(throws: GenerationError.self) { try pipeline.prepare(request) }
        #expect(error.description.contains("encoder.conv_in.weight"))
        request.source = nil
        _ = try pipeline.prepare(request)
    }

    /// Numbers that are none are found when the encoder is read, at the first picture.
    @Test func aDamagedEncoderIsNoFailureOfTheDevice() throws {
        let recorded = try Recorded("sd1")
        let checkpoint = try recorded.checkpoint(forInpainting: false)
        let file = URL(fileURLWithPath: checkpoint.path + "/vae/diffusion_pytorch_model.safetensors")
        var bytes = Array(try Data(contentsOf: file))
        let data = 8 + bytes.prefix(8).reversed().reduce(0) { $0 << 8 | Int($1) }
        let header = try JSONValue(parsing: Array(bytes[8..<data]))
        let start = try #require(header["encoder.conv_in.weight"]?["data_offsets"]?.arrayValue?.first?.integerValue)
        withUnsafeBytes(of: Float.nan.bitPattern.littleEndian) {
            bytes.replaceSubrange(data + start..<data + start + 4, with: $0)
        }
        try Data(bytes).write(to: file)
        let pipeline = try pipeline(checkpoint)
        let request = try request(recorded)
        let error = try #require(throws: GenerationError.self) { try pipeline.prepare(request) }
        guard case .invalid(field: "image", let reason) = error else {
            Issue.record("\(error)")
            return
        }
        #expect(reason.contains("encoder.conv_in.weight") && reason.contains("not a number"))
    }

    @Test func theNeedIsWhatAPictureFromAPictureTakes() throws {
        let recorded = try Recorded("sd1")
        let pipeline = try pipeline(recorded.checkpoint(forInpainting: true))
        var request = try request(recorded)
        request.source = recorded.source(strength: 0.5, hasMask: true)
        _ = try pipeline.prepare(request)
        pipeline.device.releaseUnusedMemory()
        let generation = try pipeline.prepare(request)
        while generation.completedSteps < generation.totalSteps { try generation.step() }
        _ = try generation.decode()
        let plan = try pipeline.plan(for: request, pipeline.program(request))
        let host = pipeline.device.sharesHostMemory ? request.width * request.height * 3 * 8 : 0
        #expect(pipeline.device.highWaterBytes + host <= plan.need.peakBytes)
    }
}
