// The second pass: to the bit what two requests make, its steps and its memory counted before the first step. With the demo model.

import TensorOps
import TestSupport
import Testing

@testable import StableDiffusion

@Suite(.requiresDevice)
@DeviceActor
struct HiresTests {
    private func pipeline() throws -> StableDiffusionPipeline {
        try StableDiffusionPipeline(
            PipelineOptions(modelPath: demoModelPath, cacheDirectory: testCacheDirectory),
            logger: testLogger
        )
    }

    private func request(_ hires: HiresPass?) -> GenerationRequest {
        GenerationRequest(
            prompt: "a red circle",
            width: 64,
            height: 32,
            steps: 3,
            guidanceScale: 5,
            seed: Seed(UInt64(7)),
            sampler: .eulerAncestral,
            hires: hires
        )
    }

    private func draw(_ request: GenerationRequest, with pipeline: StableDiffusionPipeline) throws -> GeneratedImage {
        let generation = try pipeline.prepare(request)
        while generation.completedSteps < generation.totalSteps { try generation.step() }
        return try generation.decode()
    }

    @Test func twoPassesAreTwoRequests() throws {
        let pipeline = try pipeline()
        let hires = HiresPass(scale: 2, strength: 0.5, steps: 4)
        let generation = try pipeline.prepare(request(hires))
        #expect(generation.totalSteps == 3 + 2)
        for step in 0..<generation.totalSteps {
            #expect(generation.completedSteps == step)
            try generation.step()
        }
        #expect(generation.completedSteps == generation.totalSteps)
        let picture = try generation.decode()
        #expect(picture.width == 128 && picture.height == 64)

        let first = try draw(request(nil), with: pipeline)
        var second = request(nil)
        (second.width, second.height, second.steps) = (128, 64, 4)
        second.source = SourcePicture(
            pixels: Lanczos.resized(first.pixels, channels: 3, from: (64, 32), to: (128, 64)),
            strength: 0.5
        )
        let expected = try draw(second, with: pipeline)
        #expect(picture == expected)
        // And it is another picture than the enlarged first.
        #expect(picture.pixels != second.source?.pixels)
    }

    @Test func sizesAreMultiplesOfTheModels() {
        // 102.4 and 51.2 pixels.
        #expect(request(HiresPass(scale: 1.6)).finalSize(multiple: 8) == (104, 48))
        #expect(request(nil).finalSize(multiple: 8) == (64, 32))
        #expect(request(HiresPass(scale: 1.6)).finalSize(multiple: 32) == (96, 64))
    }

    @Test func plansOfBothPassesAreKept() throws {
        let pipeline = try pipeline()
        _ = try pipeline.prepare(request(HiresPass()))
        #expect(pipeline.knownPlans.map { $0.first?.shape.width } == [64, 128])
        let plans = pipeline.knownPlans
        _ = try pipeline.prepare(request(HiresPass()))
        #expect(pipeline.knownPlans == plans)
    }

    @Test func stepsAreThoseOfTheFirstUnlessGiven() throws {
        #expect(try pipeline().prepare(request(HiresPass(strength: 0.7))).totalSteps == 3 + 2)
    }

    @Test func theMemoryOfTheSecondPassIsKnownBeforeTheFirst() throws {
        let pipeline = try pipeline()
        var large = request(nil)
        (large.width, large.height) = (128, 64)
        large.source = SourcePicture(pixels: [UInt8](repeating: 9, count: 128 * 64 * 3), strength: 0.5)
        _ = try pipeline.prepare(large)
        let needs = try [request(nil), large].map { request in
            let program = try pipeline.program(request)
            return try ([nil] + pipeline.vae.bandings.map { Optional($0) }).map {
                try pipeline.need(request, program, bands: $0).peakBytes
            }
        }
        let (small, least) = (try #require(needs[0].min()), try #require(needs[1].min()))
        #expect(small < least)
        // Room for the first pass, not for the second.
        let whole = pipeline.device.memoryBytes
        pipeline.device.memoryBytes -= pipeline.device.activationBytes
        pipeline.device.memoryBytes += (small + least) / 2
        _ = try draw(request(nil), with: pipeline)
        let hires = HiresPass(scale: 2, strength: 0.5)
        let error = try #require(throws: GenerationError.self) { try pipeline.prepare(request(hires)) }
        guard case .doesNotFit(let memory) = error else {
            Issue.record("\(error)")
            return
        }
        #expect(memory.isPermanent && memory.size == .init(width: 128, height: 64), "\(error)")
        #expect(memory.enlargedFrom == .init(width: 64, height: 32))
        // What is advised fits.
        let advised = try #require(
            memory.description.split(separator: "that is a scale of ").last.flatMap { Double($0) }
        )
        #expect(advised > 1 && advised < 2)
        _ = try pipeline.prepare(request(HiresPass(scale: advised, strength: 0.5)))
        // With room, both passes take no more than the second alone: the first has let go of its own by then.
        pipeline.device.memoryBytes = whole
        pipeline.device.releaseUnusedMemory()
        _ = try draw(request(hires), with: pipeline)
        #expect(pipeline.device.highWaterBytes <= needs[1][0])
    }

    @Test(arguments: [
        (HiresPass(scale: 1), "scale"), (HiresPass(scale: 4.1), "scale"), (HiresPass(scale: .nan), "scale"),
        (HiresPass(strength: 0), "strength"), (HiresPass(strength: 0.3), "strength"),
        (HiresPass(strength: 2), "strength"),
        (HiresPass(steps: 0), "steps"),
    ])
    func whatIsWrongIsSaidOfTheSecondPass(_ hires: HiresPass, _ words: String) throws {
        let error = try #require(throws: GenerationError.self) { try pipeline().prepare(request(hires)) }
        guard case .invalid("hires", let reason) = error else {
            Issue.record("\(error)")
            return
        }
        #expect(reason.contains(words), "\(reason)")
    }

    @Test func anImageIsEnlargedOtherwise() throws {
        var request = request(HiresPass())
        request.source = SourcePicture(pixels: [UInt8](repeating: 9, count: 64 * 32 * 3), strength: 0.5)
        let error = try #require(throws: GenerationError.self) { try pipeline().prepare(request) }
        #expect(error.description.contains("hires: it is for pictures drawn from noise"))
    }
}
