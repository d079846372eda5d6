// What a picture takes, said beforehand, against what it then took; decoding in bands against decoding on the whole; and devices that pretend
// to be small.

import TensorOps
import TestSupport
import Testing

@testable import StableDiffusion

@Suite(.requiresDevice)
@DeviceActor
struct PictureMemoryTests {
    private func pipeline(_ path: String = demoModelPath, _ precision: Precision = .float32) throws
        -> StableDiffusionPipeline
    {
        try StableDiffusionPipeline(
            PipelineOptions(modelPath: path, precision: precision, cacheDirectory: testCacheDirectory),
            logger: testLogger
        )
    }

    private func request(_ width: Int, _ height: Int, scale: Double = 7.5) -> GenerationRequest {
        GenerationRequest(
            prompt: "a red circle",
            width: width,
            height: height,
            steps: 1,
            guidanceScale: scale,
            seed: Seed(UInt64(1))
        )
    }

    private func draw(_ request: GenerationRequest, with pipeline: StableDiffusionPipeline) throws -> GeneratedImage {
        let generation = try pipeline.prepare(request)
        while generation.completedSteps < generation.totalSteps { try generation.step() }
        return try generation.decode()
    }

    // MARK: Decoding in bands

    /// Sizes in latents: of several bands with and without a remainder, of one row, of less than a band.
    private static let latentSizes = [(16, 8), (9, 5), (17, 1), (1, 3), (23, 7)]

    @Test(arguments: ["sd1", "odd", "sd2", "deep"])
    func bandsDecodeAsTheWholeDoes(_ model: String) throws {
        let pipeline = try pipeline(RandomCheckpoint.shared(model).path)
        for size in Self.latentSizes { try bandsDecodeAsTheWholeDoes(pipeline, size) }
    }

    private func bandsDecodeAsTheWholeDoes(_ pipeline: StableDiffusionPipeline, _ size: (Int, Int)) throws {
        let channels = pipeline.configuration.vae.latentChannels
        let latents = try pipeline.device.tensor(
            HostTensor.random([1, size.0, size.1, channels], seed: 61).values,
            shape: [1, size.0, size.1, channels],
            type: .float32
        )
        let whole = try pipeline.vae.decode(latents).floats().map { Double($0) }
        for bands in pipeline.vae.bandings + [DecoderBands(firstBlock: 1, rows: 3)] {
            let picture = try pipeline.vae.decode(latents, bands: bands)
            #expect(picture.shape[1] == size.0 * pipeline.configuration.vae.scaleFactor)
            // The same sums in another order, as between two kernels of one convolution.
            expectClose(try picture.floats(), whole, Tolerance(nmse: 1e-11, peak: 1e-4), "\(bands)")
        }
    }

    // MARK: The need

    @Test(arguments: [(64, 64), (384, 128), (200, 264)], [7.5, 1])
    func theNeedIsWhatThePictureTakes(_ size: (Int, Int), _ scale: Double) throws {
        let pipeline = try pipeline()
        let request = request(size.0, size.1, scale: scale)
        for comfortable in [true, false] {
            // Without room to be comfortable the picture is decoded in bands.
            pipeline.device.comfortableBytes = comfortable ? 8 << 30 : 0
            pipeline.device.releaseUnusedMemory()
            _ = try draw(request, with: pipeline)
            let plan = try pipeline.plan(for: request, pipeline.program(request))
            if comfortable { #expect(plan.bands == nil) }
            let host = pipeline.device.sharesHostMemory ? size.0 * size.1 * 3 * 8 : 0
            let taken = pipeline.device.highWaterBytes + host
            #expect(taken <= plan.need.peakBytes)
            #expect(Double(plan.need.peakBytes) <= 1.15 * Double(taken))
        }
    }

    /// Samplers that keep earlier samples, outputs and noise.
    @Test(arguments: [Sampler.lms, .unipc, .dpmppSDE])
    func whatASamplerKeepsIsCounted(_ sampler: Sampler) throws {
        let pipeline = try pipeline()
        var request = request(256, 256)
        (request.sampler, request.steps) = (sampler, 5)
        pipeline.device.releaseUnusedMemory()
        let generation = try pipeline.prepare(request)
        while generation.completedSteps < generation.totalSteps { try generation.step() }
        let program = try pipeline.program(request)
        #expect(program.mostHeld.values >= 3)
        let need = try pipeline.need(request, program, bands: nil)
        #expect(pipeline.device.highWaterBytes <= need.peakBytes)
    }

    @Test func aDryRunAllocatesNothingAndChangesNothing() throws {
        let pipeline = try pipeline()
        let picture = try draw(request(64, 64), with: pipeline)
        let (held, peak) = (pipeline.device.heldBytes, pipeline.device.peakBytes)
        let large = request(4096, 4096)
        _ = try pipeline.need(large, pipeline.program(large), bands: nil)
        #expect(pipeline.device.heldBytes == held && pipeline.device.peakBytes == peak)
        #expect(try draw(request(64, 64), with: pipeline) == picture)
    }

    @Test func bandsTakeLess() throws {
        let pipeline = try pipeline()
        let needs = try ([nil] + pipeline.vae.bandings.map { Optional($0) }).map {
            try pipeline.need(request(2048, 2048), pipeline.program(request(2048, 2048)), bands: $0)
        }
        #expect(needs.dropFirst().allSatisfy { $0.peakBytes < needs[0].peakBytes })
        #expect((needs.last?.largestAllocation ?? .max) < needs[0].largestAllocation / 2)
    }

    // MARK: Small devices

    private func refusal(_ request: GenerationRequest, by pipeline: StableDiffusionPipeline) throws -> PictureMemory {
        let error = try #require(throws: GenerationError.self) { try pipeline.prepare(request) }
        guard case .doesNotFit(let memory) = error else { throw error }
        return memory
    }

    @Test(arguments: [(1024, 1024), (1536, 512), (1 << 20, 1 << 20)])
    func aSmallDeviceSaysWhatFits(_ size: (Int, Int)) throws {
        let pipeline = try pipeline()
        let used = pipeline.device.memoryBytes - pipeline.device.activationBytes
        pipeline.device.memoryBytes = used + 40 << 20
        let memory = try refusal(request(size.0, size.1), by: pipeline)
        #expect(memory.isPermanent && !memory.isOneAllocation)
        #expect(memory.neededBytes > memory.availableBytes && memory.availableBytes == pipeline.device.activationBytes)
        let largest = try #require(memory.largest)
        #expect(memory.description.contains("\(largest.width)x\(largest.height)"))
        #expect(largest.width % 8 == 0 && largest.height % 8 == 0)
        let shape = Double(size.0) / Double(size.1)
        #expect(abs(Double(largest.width) - shape * Double(largest.height)) <= 8 * max(shape, 1))
        // It does fit, and the next larger one does not.
        let picture = try draw(request(largest.width, largest.height), with: pipeline)
        #expect(picture.width == largest.width)
        #expect(throws: GenerationError.self) {
            try pipeline.prepare(request(largest.width + 16, largest.height + 16))
        }
    }

    /// The host's memory is shared with others: what is free decides, and it may be more another time.
    @Test func whatTheHostHasLeftDecides() throws {
        let pipeline = try pipeline()
        pipeline.device.hostAvailableBytes = { 300 << 20 }
        guard pipeline.device.sharesHostMemory else { return }
        let memory = try refusal(request(1024, 1024), by: pipeline)
        #expect(!memory.isPermanent && memory.availableBytes <= 300 << 20)
        #expect(memory.description.contains("free at present"))
        pipeline.device.hostAvailableBytes = { nil }
        _ = try pipeline.prepare(request(1024, 1024))
    }

    /// A device that grants small allocations only: bands that fit are chosen, and the picture is the same.
    @Test func aSmallLargestAllocationMeansBands() throws {
        let pipeline = try pipeline()
        let request = request(200, 264)
        let whole = try draw(request, with: pipeline)
        let first = try pipeline.plan(for: request, pipeline.program(request))
        #expect(first.bands == nil)

        let small = try self.pipeline()
        let allocations = try small.vae.bandings.map {
            try small.need(request, small.program(request), bands: $0).largestAllocation
        }
        let least = try #require(allocations.min())
        #expect(least < first.need.largestAllocation)
        small.device.maxAllocationBytes = least
        let plan = try small.plan(for: request, small.program(request))
        #expect(plan.bands != nil)
        let banded = try draw(request, with: small)
        #expect(zip(whole.pixels, banded.pixels).allSatisfy { abs(Int($0) - Int($1)) <= 1 })

        small.device.maxAllocationBytes = 100_000
        let memory = try refusal(request, by: small)
        #expect(memory.isOneAllocation && memory.isPermanent && memory.availableBytes == 100_000)
    }

    @Test func nothingFitsWhereThereIsNoMemory() throws {
        let pipeline = try pipeline()
        pipeline.device.memoryBytes -= pipeline.device.activationBytes
        let memory = try refusal(request(64, 64), by: pipeline)
        #expect(memory.largest == nil && memory.description.contains("not even the smallest"))
    }
}
