// What a pipeline does around its models: limits of a request, the memory it holds, numbers that are none. With the demo model.

import TensorOps
import TestSupport
import Testing

@testable import StableDiffusion

@Suite(.requiresDevice)
@DeviceActor
struct PipelineTests {
    private func pipeline() throws -> StableDiffusionPipeline {
        try StableDiffusionPipeline(
            PipelineOptions(modelPath: demoModelPath, cacheDirectory: testCacheDirectory),
            logger: testLogger
        )
    }

    private func request(width: Int = 16, height: Int = 16, steps: Int = 1, scale: Double = 7.5) -> GenerationRequest {
        GenerationRequest(
            prompt: "a red circle",
            width: width,
            height: height,
            steps: steps,
            guidanceScale: scale,
            seed: Seed(UInt64(1))
        )
    }

    private func draw(_ request: GenerationRequest, with pipeline: StableDiffusionPipeline) throws -> GeneratedImage {
        let generation = try pipeline.prepare(request)
        while generation.completedSteps < generation.totalSteps { try generation.step() }
        return try generation.decode()
    }

    @Test func memoryIsThatOfTheLargestPictureNotOfAllSizes() throws {
        let pipeline = try pipeline()
        _ = try draw(request(width: 128, height: 128), with: pipeline)
        let peak = pipeline.device.peakBytes
        for side in [64, 72, 96, 112] { _ = try draw(request(width: side, height: 64), with: pipeline) }
        #expect(pipeline.device.peakBytes == peak)
    }

    @Test func latentsThatAreNoNumbersAreAnErrorNotABlackPicture() throws {
        let pipeline = try pipeline()
        let generation = try #require(try pipeline.prepare(request()) as? PictureGeneration)
        try generation.step()
        let latents = generation.latents
        let values = [Float](repeating: 0, count: latents.count - 1) + [.nan]
        generation.latents = try pipeline.device.tensor(values, shape: latents.shape, type: .float32)
        let error = try #require(throws: GenerationError.self) { try generation.decode() }
        guard case .nonFinite = error else {
            Issue.record("\(error)")
            return
        }
    }

    @Test(arguments: [
        ("width", 12, 16, 1, 7.5), ("height", 16, 0, 1, 7.5), ("steps", 16, 16, 0, 7.5), ("steps", 16, 16, 1001, 7.5),
        ("scale", 16, 16, 1, 10_000.1), ("scale", 16, 16, 1, 1e308),
    ])
    func namesTheFieldItCannotDraw(field: String, width: Int, height: Int, steps: Int, scale: Double) throws {
        let pipeline = try pipeline()
        let error = try #require(throws: GenerationError.self) {
            try pipeline.prepare(request(width: width, height: height, steps: steps, scale: scale))
        }
        guard case .invalid(field, _) = error else {
            Issue.record("\(error)")
            return
        }
    }

    @Test func aPictureTheDeviceCannotHoldIsRefusedWithItsSizeAndTheNextIsDrawn() throws {
        let pipeline = try pipeline()
        // A smaller device, so that what would fit is found quickly.
        pipeline.device.memoryBytes += (100 << 20) - pipeline.device.activationBytes
        let error = try #require(throws: GenerationError.self) {
            try pipeline.prepare(request(width: 1 << 17, height: 1 << 17))
        }
        guard case .doesNotFit(let memory) = error else {
            Issue.record("\(error)")
            return
        }
        #expect(memory.neededBytes > pipeline.device.activationBytes)
        _ = try draw(request(), with: pipeline)
    }

    @Test func theLargestScaleStillGivesAPicture() throws {
        let image = try draw(
            request(steps: 4, scale: GenerationRequest.maximumGuidanceScale),
            with: pipeline()
        )
        #expect(image.pixels.count == 16 * 16 * 3)
    }
}
