// LoRAs: latents against those of diffusers' modules with the matrices merged into their weights (scripts/fixtures/loras.py), that nothing stays
// of them, all the names that files have, and what is refused.

import Foundation
import JSON
import TensorOps
import TestSupport
import Testing

@testable import StableDiffusion

/// The LoRAs of the fixture as files of a directory.
private final class LoRAFiles: Sendable {
    static let shared = Result { try LoRAFiles() }

    let directory: TemporaryDirectory
    let fixture: JSONValue
    /// Tensors by the file's name.
    let tensors: [String: [SafetensorsTensor]]

    init() throws {
        directory = try TemporaryDirectory()
        fixture = try Fixture.json("models/loras.json")
        var tensors: [String: [SafetensorsTensor]] = [:]
        for (name, file) in fixture["files"]?.objectValue ?? [:] {
            let drawn = try RandomCheckpoint.draw(file["tensors"]?.arrayValue ?? [])
            tensors[name] = drawn
            try directory.write(safetensors(drawn), to: name + ".safetensors")
        }
        self.tensors = tensors
    }
}

private func request(_ loras: [LoRAReference] = [], prompt: String = "a red circle", height: Int = 64)
    -> GenerationRequest
{
    GenerationRequest(
        prompt: prompt,
        negativePrompt: "blurry",
        width: 64,
        height: height,
        steps: 2,
        guidanceScale: 5,
        seed: Seed(UInt64(42)),
        loras: loras
    )
}

@Suite(.requiresDevice) @DeviceActor
struct LoRAPictureTests {
    private func pipeline(_ model: String, _ precision: Precision = .float32) throws -> StableDiffusionPipeline {
        var options = PipelineOptions(modelPath: try RandomCheckpoint.shared(model).path, precision: precision)
        options.lorasDirectory = try LoRAFiles.shared.get().directory.path
        options.device.gemm = .builtin
        options.device.platform = ProcessInfo.processInfo.environment["DIFFUSED_TEST_PLATFORM"]
        options.cacheDirectory = testCacheDirectory
        return try StableDiffusionPipeline(options, logger: testLogger)
    }

    private func latents(_ request: GenerationRequest, _ pipeline: StableDiffusionPipeline) throws -> [Float] {
        let generation = try #require(try pipeline.prepare(request) as? PictureGeneration)
        while generation.completedSteps < generation.totalSteps { try generation.step() }
        return try generation.latents.floats()
    }

    @Test(arguments: Precision.allCases, 0...4)
    func everyStepMatchesDiffusers(_ precision: Precision, _ run: Int) throws {
        let fixture = try LoRAFiles.shared.get().fixture
        let description = try #require(fixture["runs"]?.arrayValue?[run])
        let pipeline = try pipeline(try #require(description["model"]?.stringValue), precision)
        let request = GenerationRequest(
            prompt: try #require(description["prompt"]?.stringValue),
            negativePrompt: try #require(description["negative"]?.stringValue),
            width: try #require(description["width"]?.integerValue),
            height: try #require(description["height"]?.integerValue),
            steps: try #require(description["steps"]?.integerValue),
            guidanceScale: try #require(description["scale"]?.doubleValue),
            seed: Seed(try #require(description["seed"]?.stringValue.flatMap { UInt64($0) })),
            sampler: description["sampler"]?.stringValue.flatMap { Sampler(rawValue: $0) } ?? .ddim,
            eta: description["eta"]?.doubleValue,
            loras: try #require(description["loras"]?.arrayValue).map {
                LoRAReference(
                    name: try #require($0.arrayValue?.first?.stringValue),
                    weight: try #require($0.arrayValue?.last?.doubleValue)
                )
            }
        )
        let floats = try Fixture.floats("models/loras-\(run).floats")
        let values = try #require(description["values"]?.arrayValue)
        let generation = try #require(try pipeline.prepare(request) as? PictureGeneration)
        #expect(values.count == request.steps)
        for entry in values {
            try generation.step()
            let start = try #require(entry["offset"]?.integerValue) / 4
            let count = try #require(entry["count"]?.integerValue)
            let stride = try #require(entry["stride"]?.integerValue)
            let actual = try generation.latents.floats()
            let sampled = Swift.stride(from: 0, to: actual.count, by: stride).map { actual[$0] }
            let comparison = compare(sampled, floats[start..<(start + count)].map(Double.init))
            let bound = ParityBound(precision, activations: pipeline.device.activationType).latents
            #expect(comparison.nmse <= bound, "\(entry["name"]?.stringValue ?? ""): \(comparison)")
        }
    }

    /// One pipeline, several LoRAs in turn: each picture is what it would be without the others, to the bit.
    @Test func nothingStaysOfALoRA() throws {
        let pipeline = try pipeline("sd1", .float16)
        let (kohya, peft) = (LoRAReference(name: "kohya", weight: 0.8), LoRAReference(name: "peft"))
        let base = try latents(request(), pipeline)
        let first = try latents(request([kohya]), pipeline)
        #expect(first != base)
        #expect(try latents(request(), pipeline) == base)
        let second = try latents(request([peft]), pipeline)
        #expect(second != first && second != base)
        let both = try latents(request([kohya, peft]), pipeline)
        #expect(both != first && both != second)
        #expect(try latents(request([kohya]), pipeline) == first)
        #expect(try latents(request([LoRAReference(name: "kohya", weight: 0)]), pipeline) == base)

        // Two pictures step by step in turn.
        let one = try #require(try pipeline.prepare(request([peft])) as? PictureGeneration)
        let other = try #require(try pipeline.prepare(request()) as? PictureGeneration)
        for _ in 0..<2 {
            try one.step()
            try other.step()
        }
        #expect(try one.latents.floats() == second)
        #expect(try other.latents.floats() == base)
    }

    @Test func aTagIsALoRAInOneSyntaxAndTextInTheOther() throws {
        let pipeline = try pipeline("sd1")
        let reference = LoRAReference(name: "peft", weight: 0.5)
        let expected = try latents(request([reference]), pipeline)
        var tagged = request(prompt: "a red <lora:peft:0.5>circle")
        tagged.promptSyntax = .a1111
        #expect(try latents(tagged, pipeline) == expected)
        tagged.promptSyntax = .plain
        #expect(try latents(tagged, pipeline) != expected)
        tagged.promptSyntax = .a1111
        tagged.loras = [LoRAReference](repeating: reference, count: 16)
        let error = #expect(throws: GenerationError.self) { try pipeline.prepare(tagged) }
        #expect(error?.description == "loras: 17 LoRAs are more than 16")
    }

    /// The dry run knows what adapters take.
    @Test func memoryIsWhatWasComputed() throws {
        let pipeline = try pipeline("sd1")
        let generation = try pipeline.prepare(request([LoRAReference(name: "kohya")], height: 128))
        while generation.completedSteps < generation.totalSteps { try generation.step() }
        _ = try generation.decode()
        let plan = try #require(pipeline.knownPlans.first?.first)
        #expect(plan.shape.loras == [LoRAReference(name: "kohya")])
        #expect(pipeline.device.highWaterBytes <= plan.need.peakBytes)
    }
}

@Suite struct LoRAFileTests {
    private let directory: TemporaryDirectory
    private let targets: LoRATargets

    init() throws {
        directory = try TemporaryDirectory()
        targets = LoRATargets(try ModelConfiguration(folder: RandomCheckpoint.shared("sd1").path))
    }

    /// A file of a LoRA for one layer, with changes.
    private func reason(_ change: (inout [SafetensorsTensor]) -> Void) throws -> String? {
        func tensor(_ name: String, _ shape: [Int], _ value: Float = 0.5) -> SafetensorsTensor {
            SafetensorsTensor(name: name, shape: shape, values: [Float](repeating: value, count: shape.reduce(1, *)))
        }
        let module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
        var tensors = [
            tensor(module + ".lora_down.weight", [2, 32]), tensor(module + ".lora_up.weight", [96, 2]),
            tensor(module + ".alpha", [], 1),
        ]
        change(&tensors)
        try directory.write(safetensors(tensors), to: "changed.safetensors")
        let loras = LoRADirectory(directory.path, targets)
        do throws(GenerationError) {
            _ = try loras([LoRAReference(name: "changed")])
            return nil
        } catch {
            #expect(!error.description.contains(directory.path))
            return error.description
        }
    }

    private func renamed(_ tensor: SafetensorsTensor, _ old: String, _ new: String) -> SafetensorsTensor {
        SafetensorsTensor(name: tensor.name.replacing(old, with: new), shape: tensor.shape, values: tensor.values)
    }

    @Test func readsWhatIsRight() throws {
        #expect(try reason { _ in } == nil)
        #expect(try reason { $0.removeLast() } == nil)
    }

    @Test(arguments: [
        (".dora_scale", "DoRA"), (".hada_w1_a", "LoHa"), (".lokr_w1", "LoKr"), (".oft_blocks", "OFT"),
        (".on_input", "IA3"),
        (".lora_mid.weight", "Tucker"), (".diff", "differences"), (".lora_up.bias", "biases"),
    ])
    func namesOtherKinds(suffix: String, kind: String) throws {
        let reason = try reason {
            $0.append(SafetensorsTensor(name: "lora_unet_conv_in" + suffix, shape: [1], values: [1]))
        }
        #expect(reason?.contains(kind) ?? false)
        #expect(reason?.contains("lora_unet_conv_in" + suffix) ?? false)
        #expect(reason?.contains("not supported") ?? false)
    }

    @Test func refusesWhatDoesNotFit() throws {
        // Of Stable Diffusion XL, by the width of the text.
        var reason = try reason { tensors in
            tensors[0] = SafetensorsTensor(
                name: tensors[0].name,
                shape: [2, 2048],
                values: [Float](repeating: 1, count: 4096)
            )
        }
        #expect(reason?.contains("LoRA for Stable Diffusion XL") ?? false)
        #expect(reason?.contains("2048") ?? false)
        // With a second text encoder.
        reason = try self.reason { tensors in
            tensors.append(
                SafetensorsTensor(
                    name: "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
                    shape: [1],
                    values: [1]
                )
            )
        }
        #expect(reason?.contains("second text encoder") ?? false)
        // A layer that is not there.
        reason = try self.reason { tensors in tensors = tensors.map { renamed($0, "mid_block", "mid_block_7") } }
        #expect(reason?.contains("(3 of 3, such as \"lora_unet_mid_block_7_attentions_0") ?? false)
        // Another width of the same layer.
        reason = try self.reason { tensors in
            tensors[1] = SafetensorsTensor(
                name: tensors[1].name,
                shape: [95, 2],
                values: [Float](repeating: 1, count: 190)
            )
        }
        #expect(
            reason?.contains("[95, 2] do not fit mid_block.attentions.0.transformer_blocks.0.attn2.to_k [96, 32]")
                ?? false
        )
        // Half of a pair, two of a kind, several alphas, another file.
        reason = try self.reason { $0.remove(at: 1) }
        #expect(reason?.contains("incomplete") ?? false)
        reason = try self.reason { $0.append(renamed($0[0], ".lora_down", ".lora_A")) }
        #expect(reason?.contains("the same matrix") ?? false)
        reason = try self.reason { $0[2] = SafetensorsTensor(name: $0[2].name, shape: [2], values: [1, 1]) }
        #expect(reason?.contains("2 numbers") ?? false)
        reason = try self.reason {
            $0 = [SafetensorsTensor(name: "emb_params", shape: [1, 768], values: [Float](repeating: 1, count: 768))]
        }
        #expect(reason?.contains("a textual inversion") ?? false)
    }

    @Test func refusesNumbersThatAreNone() throws {
        for index in 0...2 {
            let reason = try reason { tensors in
                var values = tensors[index].values
                values[values.count - 1] = index == 0 ? .nan : .infinity
                tensors[index] = SafetensorsTensor(
                    name: tensors[index].name,
                    shape: tensors[index].shape,
                    values: values
                )
            }
            #expect(reason?.contains("infinite or not a number") ?? false)
            #expect(reason?.hasPrefix("loras: \"changed\": element") ?? false)
        }
    }

    @Test(arguments: [
        ("../secret", "no name of a file"), ("a/b", "no name of a file"), ("", "no name of a file"),
        (".hidden", "no name of a file"),
        ("a\0b", "no name of a file"), ("watercolor", "there is no LoRA \"watercolor\"; there is \"Watercolour-v2\""),
        ("inkpot", "there is no LoRA \"inkpot\""),
    ])
    func namesThatAreNotThere(name: String, reason: String) throws {
        try directory.write([0], to: "Watercolour-v2.safetensors")
        try directory.write([0], to: "notes.txt")
        let loras = LoRADirectory(directory.path, targets)
        let error = #expect(throws: GenerationError.self) { try loras([LoRAReference(name: name)]) }
        guard case .invalid(field: "loras", let found) = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(found.hasPrefix(reason) || found.contains(reason))
        #expect(!found.contains("notes"))
    }

    /// At start, before the model is read or a device opened.
    @Test func aModelIsNotLoadedWithoutItsDirectories() throws {
        let there = try TemporaryDirectory()
        let file = try there.write([UInt8](), to: "file")
        var options = PipelineOptions(modelPath: "nowhere", lorasDirectory: there.path, embeddingsDirectory: there.path)
        try options.checkDirectories()
        options.lorasDirectory = there.path + "/missing"
        #expect {
            try StableDiffusionPipeline(options, logger: testLogger)
        } throws: {
            "\($0)"
                == "\(there.path)/missing: loras names it, and there is no such folder; "
                + "allowed: a folder, which may be empty, or none"
        }
        options.lorasDirectory = nil
        options.embeddingsDirectory = file
        #expect(throws: ConfigurationFileError.self) { try StableDiffusionPipeline(options, logger: testLogger) }
    }

    @Test func saysThatADirectoryIsMissing() throws {
        let error = #expect(throws: GenerationError.self) {
            try LoRADirectory(nil, targets)([LoRAReference(name: "a")])
        }
        #expect(error?.description.contains("give the model one with loras") ?? false)
        let tooMuch = LoRAReference(name: "a", weight: -101)
        let weight = #expect(throws: GenerationError.self) { try LoRADirectory(directory.path, targets)([tooMuch]) }
        #expect(weight?.description.contains("-100 to 100") ?? false)
        let noNumber = LoRAReference(name: "a", weight: .nan)
        #expect(throws: GenerationError.self) { try LoRADirectory(directory.path, targets)([noNumber]) }
    }

    /// The same module in every naming.
    @Test(arguments: [
        (
            ModuleName(part: .unet, path: "up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_out.0"),
            [
                "lora_unet_up_blocks_2_attentions_1_transformer_blocks_0_attn1_to_out_0",
                "lora_unet_output_blocks_7_1_transformer_blocks_0_attn1_to_out_0",
                "unet.up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_out.0",
                "unet.up_blocks.2.attentions.1.transformer_blocks.0.attn1.processor.to_out",
                "base_model.model.up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_out.0",
                "unet.base_model.model.up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_out.0",
                "diffusion_model.output_blocks.7.1.transformer_blocks.0.attn1.to_out.0",
            ]
        ),
        (
            ModuleName(part: .unet, path: "down_blocks.0.downsamplers.0.conv"),
            ["lora_unet_down_blocks_0_downsamplers_0_conv", "lora_unet_input_blocks_3_0_op"]
        ),
        (
            ModuleName(part: .unet, path: "up_blocks.0.resnets.1.conv_shortcut"),
            ["lora_unet_up_blocks_0_resnets_1_conv_shortcut", "lora_unet_output_blocks_1_0_skip_connection"]
        ),
        (
            ModuleName(part: .textEncoder(0), path: "encoder.layers.1.self_attn.q_proj"),
            [
                "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
                "lora_te1_text_model_encoder_layers_1_self_attn_q_proj",
                "text_encoder.text_model.encoder.layers.1.self_attn.q_proj",
                "text_encoder.encoder.layers.1.self_attn.q_proj",
                "text_encoder.text_model.encoder.layers.1.self_attn.to_q",
            ]
        ),
    ])
    func knowsAllNames(module: ModuleName, names: [String]) {
        for name in names { #expect(targets.module(name) == module, "\(name)") }
        #expect(targets.module("lora_unet_up_blocks_9_attentions_1_proj_in") == nil)
        #expect(targets.module("text_encoder.embeddings.token_embedding") == nil)
    }

    /// What diffusers saves of alpha, beside the tensors.
    @Test func readsScalesOfTheMetadata() throws {
        let name = "unet.mid_block.attentions.0.proj_in"
        let tensors = [
            SafetensorsTensor(
                name: name + ".lora_A.weight",
                shape: [4, 96],
                values: [Float](repeating: 1, count: 384)
            ),
            SafetensorsTensor(
                name: name + ".lora_B.weight",
                shape: [96, 4],
                values: [Float](repeating: 1, count: 384)
            ),
        ]
        let module = ModuleName(part: .unet, path: "mid_block.attentions.0.proj_in")
        for (metadata, scale) in [
            ("", 1.0), (#"{"unet.lora_alpha": 8, "unet.r": 4}"#, 2),
            (#"{"unet.lora_alpha": 8, "unet.use_rslora": true}"#, 4),
            (#"{"unet.lora_alpha": 8, "unet.alpha_pattern": {"proj_in": 1}}"#, 0.25),
            (#"{"text_encoder.lora_alpha": 8}"#, 1),
        ] {
            let bytes = safetensors(tensors, metadata: metadata.isEmpty ? [:] : ["lora_adapter_metadata": metadata])
            let path = try directory.write(bytes, to: "saved.safetensors")
            let pair = try #require(try LoRA(path: path, targets).pair(module, weight: 0.5))
            // Both matrices are all ones, so that a product of them is the scale.
            #expect(Double(pair.up[0] * pair.down[0]) == scale * 0.5, "\(metadata)")
        }
        let damaged = try directory.write(
            safetensors(tensors, metadata: ["lora_adapter_metadata": "{"]),
            to: "damaged.safetensors"
        )
        #expect(throws: UnfitFileError.self) { try LoRA(path: damaged, targets) }
    }

    @Test func takesTagsOut() throws {
        var request = request(prompt: "a <lora:one>cat <lora:two words:0.5>, <lora:three: -1e-1> <b> <lora:open")
        #expect(try request.takingTags() == request)
        request.promptSyntax = .a1111
        let taken = try request.takingTags()
        #expect(taken.prompt == "a cat ,  <b> <lora:open")
        #expect(
            taken.loras == [
                LoRAReference(name: "one"), LoRAReference(name: "two words", weight: 0.5),
                LoRAReference(name: "three", weight: -0.1),
            ]
        )
        #expect(taken.negativePrompt == request.negativePrompt)
        for (tag, reason) in [
            ("<lora::1>", "name"), ("<lora:a:x>", "\"x\" is no weight"), ("<lora:a:1:2>", "2 weights"),
            ("<lora:a:inf>", "no weight"),
        ] {
            request.prompt = tag
            let error = #expect(throws: GenerationError.self) { try request.takingTags() }
            #expect(error?.description.contains(reason) ?? false)
        }
    }
}
