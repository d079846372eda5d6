// Several models on one device: each draws what it draws alone, to the bit, and leaves nothing behind. With the demo model and random ones.

import OpenCLRuntime
import TensorOps
import TestSupport
import Testing

@testable import StableDiffusion

@Suite(.requiresDevice)
@DeviceActor
struct ModelLoaderTests {
    private func options(_ path: String, _ precision: Precision) -> PipelineOptions {
        PipelineOptions(modelPath: path, precision: precision, cacheDirectory: testCacheDirectory)
    }

    private func draw(_ generator: any ImageGenerator, side: Int) throws -> [UInt8] {
        let request = GenerationRequest(
            prompt: "a red circle",
            width: side,
            height: side,
            steps: 2,
            guidanceScale: 5,
            seed: Seed(UInt64(7))
        )
        let generation = try generator.prepare(request)
        while generation.completedSteps < generation.totalSteps { try generation.step() }
        return try generation.decode().pixels
    }

    /// In turn, with three ways to store weights on one queue, in sizes of their own.
    @Test func modelsDoNotDisturbEachOther() throws {
        let random = try RandomCheckpoint.shared("sd1").path
        let models = [
            (options(demoModelPath, .float16), 64), (options(random, .float32), 32),
            (options(demoModelPath, .bfloat16), 32),
        ]
        let alone = try models.map { try draw(StableDiffusionPipeline($0, logger: testLogger), side: $1) }
        let loader = PipelineLoader(logger: testLogger)
        #expect(loader.availableBytes == nil)
        let together = try models.map { try loader.load($0.0) }
        for _ in 0..<2 {
            for (index, generator) in together.enumerated() {
                #expect(try draw(generator, side: models[index].1) == alone[index])
            }
        }
        let queues = together.compactMap { ($0 as? StableDiffusionPipeline)?.device.queue }
        #expect(queues.count == 3 && queues.allSatisfy { $0 === queues[0] })
    }

    @Test func whatIsUnloadedLeavesNothing() throws {
        let loader = PipelineLoader(logger: testLogger)
        let kept = try loader.load(options(demoModelPath, .float16))
        let queue = try #require((kept as? StableDiffusionPipeline)?.device.queue)
        let picture = try draw(kept, side: 64)
        loader.releaseUnusedMemory()
        let before = queue.allocatedBytes
        var other: (any ImageGenerator)? = try loader.load(options(demoModelPath, .float32))
        if let other { _ = try draw(other, side: 64) }
        #expect(queue.allocatedBytes > before)
        other = nil
        loader.releaseUnusedMemory()
        // The zeros that its device keeps for missing biases stay, for whichever model comes next.
        #expect(queue.allocatedBytes - before <= 16384)
        #expect(try draw(kept, side: 64) == picture)
    }

    @Test func aModelTooLargeForWhatIsLeftSaysSo() throws {
        let loader = PipelineLoader(logger: testLogger)
        let first = try loader.load(options(demoModelPath, .float16))
        let device = try #require((first as? StableDiffusionPipeline)?.device)
        let whole = device.memoryBytes
        device.memoryBytes = device.queue.allocatedBytes + (1 << 20)
        let error = try #require(throws: GenerationError.self) { try loader.load(options(demoModelPath, .float32)) }
        guard case .outOfDeviceMemory = error else {
            Issue.record("\(error)")
            return
        }
        device.memoryBytes = whole
        _ = try draw(loader.load(options(demoModelPath, .float32)), side: 32)
        _ = try draw(first, side: 32)
    }

    @Test func anOutlineNeedsNoDevice() throws {
        let outline = try options(demoModelPath, .float16).outline()
        #expect(outline.name == "demo" && outline.sizeMultiple == 8)
        // What the pipeline says of itself.
        let pipeline = try StableDiffusionPipeline(options(demoModelPath, .float16), logger: testLogger)
        #expect(outline.nativeSize == pipeline.model.nativeSize)
        // Padding and what stays in float32 add to it.
        let bytes = Double(pipeline.device.queue.allocatedBytes)
        #expect(Double(outline.weightBytes) < bytes && bytes < 1.5 * Double(outline.weightBytes))
        #expect(throws: ConfigurationFileError.self) { try options("/nowhere", .float16).outline() }
    }
}
