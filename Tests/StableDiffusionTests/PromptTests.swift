// Weighted prompts against an independent reading of AUTOMATIC1111's rules (scripts/fixtures/prompts.py), and how they reach the UNet.

import Foundation
import JSON
@testable import StableDiffusion
import TensorOps
import TestSupport
import Testing

@Suite struct WeightedPromptTests {
    private static let fixture = Result { try Fixture.json("weighted-prompts.json") }

    /// The example in the documentation of that program's parser.
    @Test func weightsMultiply() throws {
        let prompt = try WeightedPrompt("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).")
        let expected: [(String, Double)] = [
            ("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
            ("sky", 1.4641), (".", 1.1),
        ]
        #expect(prompt.parts.count == expected.count)
        for case (.text(let text, let weight), let (words, number)) in zip(prompt.parts, expected) {
            #expect(text == words && abs(weight - number) < 1e-9)
        }
    }

    @Test func partsAndChunksAreThoseOfTheFixture() throws {
        let cases = try #require(Self.fixture.get()["cases"]?.arrayValue)
        #expect(cases.count > 10)
        let tokenizer = try CLIPTokenizer(
            directory: demoModelPath + "/tokenizer",
            textEncoder: CLIPTextModelConfiguration()
        )
        for item in cases {
            let text = try #require(item["prompt"]?.stringValue)
            let prompt = try WeightedPrompt(text)
            let parts = try #require(item["parts"]?.arrayValue)
            #expect(prompt.parts.count == parts.count, "\(text)")
            for (part, expected) in zip(prompt.parts, parts) {
                switch part {
                case .chunkEnd: #expect(expected.arrayValue?.first == .null, "\(text)")
                case .text(let words, let weight):
                    #expect(expected.arrayValue?.first == .string(words), "\(text)")
                    #expect(abs(weight - (expected.arrayValue?.last?.doubleValue ?? .nan)) < 1e-12, "\(text)")
                }
            }
            let chunks = tokenizer.chunks(prompt)
            let rows = try #require(item["rows"]?.arrayValue)
            #expect(chunks.map { $0.ids.map(Int.init) } == rows.map { $0["ids"]?.integers ?? [] }, "\(text)")
            for (chunk, row) in zip(chunks, rows) {
                let weights = row["weights"]?.arrayValue?.compactMap(\.doubleValue) ?? []
                #expect(chunk.weights == weights.map { Float($0) }, "\(text)")
            }
        }
    }

    @Test(arguments: [
        ("a [cat:dog:0.5]", "prompt editing"), ("[cat:10]", "prompt editing"), ("a [cat|dog]", "alternating"),
        ("a cat AND a dog", "AND"), ("a (cat:1.2.3)", "1.2.3"), ("(a:1e)", ""), ("(cat:.)", "no number"),
        ("(cat:99999)", "99999"), ("((cat:999):999)", "multiply"), ("[(a:b)c:d]", "prompt editing"),
    ])
    func saysWhatItDoesNotUnderstand(prompt: String, reason: String) {
        // Without a number this is text and a colon.
        if reason.isEmpty {
            #expect(throws: Never.self) { try WeightedPrompt(prompt) }
            return
        }
        let error = #expect(throws: WeightedPrompt.SyntaxError.self) { try WeightedPrompt(prompt) }
        #expect(error?.reason.contains(reason) ?? false)
    }

    /// No text makes the reader fail otherwise, or take long.
    @Test func anythingIsRead() {
        var random = SystemRandomNumberGenerator()
        let alphabet = Array("()[]\\:|,. a1BREAK\u{301}é日\n")
        for _ in 0..<2000 {
            let text = String((0..<Int.random(in: 0..<60, using: &random)).map { _ in alphabet.randomElement() ?? "x" })
            do throws(WeightedPrompt.SyntaxError) { _ = try WeightedPrompt(text) } catch {
                #expect(!error.reason.isEmpty)
            }
        }
        // Every bracket is looked at once.
        #expect((try? WeightedPrompt(String(repeating: "[", count: 100_000))) != nil)
        let deep = String(repeating: "(", count: 20_000) + String(repeating: "[a", count: 100)
        #expect(throws: WeightedPrompt.SyntaxError.self) { try WeightedPrompt(deep) }
    }
}

@Suite(.requiresDevice) @DeviceActor
struct PromptEncoderTests {
    private func pipeline(_ model: String) throws -> StableDiffusionPipeline {
        try StableDiffusionPipeline(
            PipelineOptions(
                modelPath: RandomCheckpoint.shared(model).path,
                precision: .float32,
                cacheDirectory: testCacheDirectory
            ),
            logger: testLogger
        )
    }

    private func request(_ prompt: String, negative: String = "") -> GenerationRequest {
        GenerationRequest(
            prompt: prompt,
            negativePrompt: negative,
            width: 64,
            height: 64,
            steps: 1,
            guidanceScale: 7,
            seed: Seed(UInt64(1)),
            promptSyntax: .a1111
        )
    }

    @Test(arguments: ["sd1", "xl"])
    func statesAreThoseOfTheFixture(_ model: String) throws {
        let pipeline = try pipeline(model)
        let cases = try #require(Fixture.json("weighted-prompts.json")["encoded"]?.arrayValue)
        for item in cases where item["model"]?.stringValue == model {
            var request = request(try #require(item["prompt"]?.stringValue))
            request.guidanceScale = 1
            request.clipSkip = try #require(item["clip_skip"]?.integerValue)
            let encoded = try #require(pipeline.encode(request).batches.first)
            #expect(encoded.hiddenStates.shape == item["shape"]?.integers)
            let stride = try #require(item["stride"]?.integerValue)
            let values = try encoded.hiddenStates.floats()
            let sampled = Swift.stride(from: 0, to: values.count, by: stride).map { values[$0] }
            expectClose(
                sampled,
                item["values"]?.arrayValue?.compactMap(\.doubleValue) ?? [],
                Tolerance(nmse: 1e-10, peak: 1e-4),
                request.prompt
            )
            if let pooled = encoded.pooled {
                expectClose(
                    try pooled.floats(),
                    item["pooled"]?.arrayValue?.compactMap(\.doubleValue) ?? [],
                    Tolerance(nmse: 1e-10, peak: 1e-4),
                    request.prompt
                )
            }
        }
    }

    /// Without anything special in it a prompt is the same in both syntaxes, and so is the picture.
    @Test func anOrdinaryPromptIsTheSameInBothSyntaxes() throws {
        let pipeline = try pipeline("sd1")
        var request = request("a red circle, small", negative: "blurry")
        let weighted = try pipeline.encode(request).batches.map { try $0.hiddenStates.floats() }
        request.promptSyntax = .plain
        #expect(try pipeline.encode(request).batches.map { try $0.hiddenStates.floats() } == weighted)
    }

    /// A prompt longer than its negative is another batch; where both are long the batch is one, and both ways agree.
    @Test func promptsOfDifferentLengthGiveTheSamePrediction() throws {
        let pipeline = try pipeline("xl")
        let long = "a red circle BREAK on a blue background"
        var longer = request(long, negative: "blurry")
        let apart = try pipeline.encode(longer)
        #expect(apart.batches.map { $0.hiddenStates.shape } == [[1, 77, 56], [1, 154, 56]])
        #expect(try pipeline.promptEncoder.tokenCounts(longer, usesGuidance: true) == [154, 77])
        longer.negativePrompt = "blurry BREAK dark"
        let together = try pipeline.encode(longer)
        #expect(together.batches.map { $0.hiddenStates.shape } == [[2, 154, 56]])

        let values = HostTensor.random([1, 8, 8, 4], seed: 5).values
        let input = { (copies: Int) in
            try pipeline.device.tensor(values, shape: [1, 8, 8, 4], type: .float32).modelInput(scale: 1, copies: copies)
        }
        let both = try pipeline.unet(
            input(2),
            timestep: 500,
            pipeline.unet.context(of: together.batches[0], height: 64, width: 64)
        ).floats()
        let alone = try pipeline.unet(
            input(1),
            timestep: 500,
            pipeline.unet.context(of: apart.batches[1], height: 64, width: 64)
        ).floats()
        expectClose(
            Array(both[both.count / 2..<both.count]),
            alone.map(Double.init),
            Tolerance(nmse: 1e-11, peak: 1e-4),
            ""
        )

        // And the whole way, with a plan that knows the length.
        longer.negativePrompt = "blurry"
        let generation = try pipeline.prepare(longer)
        try generation.step()
        #expect(try generation.decode().width == 64)
        #expect(pipeline.knownPlans.first?.first?.shape.tokens == [154, 77])
    }

    /// Zeros in place of a negative prompt are as long as the prompt, and one batch with it.
    @Test func zerosCountAsThePromptDoes() throws {
        let pipeline = try pipeline("xl")
        let long = request("a red circle BREAK on a blue background")
        #expect(try pipeline.promptEncoder.tokenCounts(long, usesGuidance: true) == [154, 154])
        #expect(try pipeline.encode(long).batches.map { $0.hiddenStates.shape } == [[2, 154, 56]])
    }

    @Test func refusesMoreChunksThanAnybodyWrites() throws {
        let pipeline = try pipeline("sd1")
        let error = try #require(throws: GenerationError.self) {
            try pipeline.prepare(request("a", negative: String(repeating: "BREAK ", count: 40)))
        }
        #expect(error.description.contains("negative_prompt") && error.description.contains("32 times"))
        var endless = request("a")
        endless.guidanceScale = -1e308
        #expect(throws: GenerationError.self) { try pipeline.prepare(endless) }
    }

    @Test func refusesLayersThatAreNotThere() throws {
        let pipeline = try pipeline("xl")
        var request = request("a")
        for (skip, allowed) in [(1, true), (2, true), (3, false), (0, false), (.max, false)] {
            request.clipSkip = skip
            if allowed {
                #expect(throws: Never.self) { try pipeline.encode(request) }
            } else {
                let error = #expect(throws: GenerationError.self) { try pipeline.encode(request) }
                #expect(error?.description.contains("1 to 2") ?? false)
            }
        }
    }
}
