// Textual inversions: a file that holds the vectors of known words has to give what those words give.

import Foundation
import JSON
import TensorOps
import TestSupport
import Testing

@testable import StableDiffusion

@Suite(.requiresDevice) @DeviceActor
struct TextualInversionTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func pipeline(_ model: String) throws -> StableDiffusionPipeline {
        var options = PipelineOptions(modelPath: try RandomCheckpoint.shared(model).path, precision: .float32)
        options.embeddingsDirectory = directory.path
        options.device.platform = ProcessInfo.processInfo.environment["DIFFUSED_TEST_PLATFORM"]
        options.cacheDirectory = testCacheDirectory
        return try StableDiffusionPipeline(options, logger: testLogger)
    }

    /// Rows of a model's token embedding.
    private func rows(_ ids: [Int], _ model: String, _ part: String, name: String) throws -> SafetensorsTensor {
        let checkpoint = try Checkpoint(directory: RandomCheckpoint.shared(model).path + "/" + part)
        let entry = "embeddings.token_embedding.weight"
        let width = try #require(checkpoint.stored(entry)?.entry.shape.last)
        let table = try checkpoint.floats(named: entry, shape: [49408, width])
        return SafetensorsTensor(
            name: name,
            shape: [ids.count, width],
            values: ids.flatMap { table[$0 * width..<($0 + 1) * width] }
        )
    }

    private func states(_ prompt: String, _ syntax: PromptSyntax, _ pipeline: StableDiffusionPipeline) throws -> [Float]
    {
        let request = GenerationRequest(
            prompt: prompt,
            width: 64,
            height: 64,
            steps: 1,
            guidanceScale: 1,
            seed: Seed(UInt64(1)),
            promptSyntax: syntax
        )
        let encoded = try #require(pipeline.encode(request).batches.first)
        return try encoded.hiddenStates.floats() + (encoded.pooled?.floats() ?? [])
    }

    @Test(arguments: ["sd1", "xl"])
    func vectorsOfKnownWordsAreThoseWords(_ model: String) throws {
        let tokenizer = try CLIPTokenizer(
            directory: demoModelPath + "/tokenizer",
            textEncoder: CLIPTextModelConfiguration()
        )
        let ids = tokenizer.encode("red circle")
        #expect(ids.count == 2)
        let tensors =
            model == "sd1"
            ? [try rows(ids, model, "text_encoder", name: "emb_params")]
            : [
                try rows(ids, model, "text_encoder", name: "clip_l"),
                try rows(ids, model, "text_encoder_2", name: "clip_g"),
            ]
        try directory.write(safetensors(tensors), to: "My-Shape.safetensors")
        let pipeline = try pipeline(model)
        for syntax in [PromptSyntax.plain, .a1111] {
            let expected = try states("a red circle, small", syntax, pipeline)
            #expect(try states("a my-shape, small", syntax, pipeline) == expected)
            #expect(try states("a my-shapes, small", syntax, pipeline) != expected)
        }
        let weighted = try states("a (red circle:1.3)", .a1111, pipeline)
        #expect(try states("a (My-Shape:1.3)", .a1111, pipeline) == weighted)
        // Never in two chunks: 74 words and two vectors.
        let words = String(repeating: "word ", count: 74)
        let apart = try states(words + "BREAK red circle", .a1111, pipeline)
        #expect(try states(words + "my-shape", .a1111, pipeline) == apart)
    }

    @Test func refusesOtherFiles() throws {
        let pipeline = try pipeline("sd1")
        func tensor(_ name: String, _ shape: [Int], _ value: Float = 1) -> SafetensorsTensor {
            SafetensorsTensor(name: name, shape: shape, values: [Float](repeating: value, count: shape.reduce(1, *)))
        }
        for (tensors, reason) in [
            (
                [tensor("emb_params", [2, 768])],
                "a textual inversion for Stable Diffusion 1.x, with tensors of the shapes [[2, 768]]"
            ),
            ([tensor("clip_l", [1, 32]), tensor("clip_g", [1, 40])], "32 numbers"),
            ([tensor("emb_params", [76, 32])], "76 vectors"), ([tensor("<word>", [32], .nan)], "not a number"),
            ([tensor("a", [1]), tensor("b", [1])], "no textual inversion"),
        ] {
            try directory.write(safetensors(tensors), to: "thing.safetensors")
            let error = #expect(throws: GenerationError.self) { try states("a thing", .plain, pipeline) }
            #expect(error?.description.contains(reason) ?? false, "\(String(describing: error))")
            #expect(error?.description.contains("\"thing\"") ?? false)
            #expect(!(error?.description.contains(directory.path) ?? true))
            // A prompt without the word does not care.
            #expect(throws: Never.self) { try states("a red circle", .plain, pipeline) }
        }
        // diffusers' naming, one vector.
        try directory.write(safetensors([tensor("<word>", [32])]), to: "thing.safetensors")
        #expect(throws: Never.self) { try states("a thing", .plain, pipeline) }
    }
}
