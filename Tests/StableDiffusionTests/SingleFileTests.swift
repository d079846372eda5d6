// Single files in the original naming: every tensor where diffusers' conversion finds it, to the bit; the configurations of
// each family; autoencoders from elsewhere; and what is no model said by its name.

import Foundation
import JSON
@testable import StableDiffusion
import TensorOps
import TestSupport
import Testing

@Suite struct SingleFileTests {
    private static let families = ["sd1", "sd1-distilled", "sd2", "sdxl"]

    private static let name = "model.safetensors"

    /// A file with these tensors, which is open when its directory goes.
    private func open(_ tensors: [SafetensorsTensor]) throws -> ModelSource {
        let directory = try TemporaryDirectory()
        return try withExtendedLifetime(directory) {
            try ModelSource(path: directory.write(safetensors(tensors), to: Self.name))
        }
    }

    // MARK: - Tensors

    @Test(arguments: families)
    func everyTensorIsTheOneThatDiffusersTakes(family: String) throws {
        let fixture = try SingleFileFixture(family)
        let tensors = fixture.tensors()
        let source = try open(tensors)
        for (component, names) in fixture.components {
            let checkpoint = try source.checkpoint(component)
            #expect(!names.isEmpty)
            for (name, place) in names {
                let expected = fixture.tensor(name, place, of: tensors)
                let values = try checkpoint.floats(named: name, shape: expected.shape)
                #expect(values == expected.values, "\(component) \(name)")
            }
        }
        #expect(source.contains("text_encoder_2") == (family == "sdxl"))
    }

    @Test func aPickledFileGivesTheSame() throws {
        let fixture = try SingleFileFixture("sd2")
        let tensors = fixture.tensors()
        let directory = try TemporaryDirectory()
        // Doubles of the weights, and the numbers of the noise schedule, are nobody's business.
        let others = [
            SafetensorsTensor(name: "model_ema.diffusion_modeltime_embed0weight", shape: [1], values: [1]),
            SafetensorsTensor(name: "alphas_cumprod", shape: [2], values: [1, .nan]),
        ]
        let path = try directory.write(torchFile(tensors + others, numbers: ["global_step": 875_000]), to: "model.ckpt")
        let source = try ModelSource(path: path)
        for (component, names) in fixture.components {
            let checkpoint = try source.checkpoint(component)
            for (name, place) in names {
                let expected = fixture.tensor(name, place, of: tensors)
                #expect(try checkpoint.floats(named: name, shape: expected.shape) == expected.values, "\(name)")
            }
        }
        #expect(try source.configuration("scheduler").value("prediction_type") == "epsilon")
    }

    /// What is checked before a device is opened is what diffusers' models have.
    @Test(arguments: families)
    func theListsOfTensorsAreThoseOfDiffusers(family: String) throws {
        let fixture = try SingleFileFixture(family)
        let source = try open(fixture.tensors())
        let unet = try UNet2DConditionModelConfiguration(file: source.configuration("unet"))
        let vae = try AutoencoderKLConfiguration(file: source.configuration("vae"))
        let text = try CLIPTextModelConfiguration(file: source.configuration("text_encoder"))
        var lists = [
            ("unet", unet.tensors), ("vae", vae.decoderTensors + vae.encoderTensors), ("text_encoder", text.tensors),
        ]
        if source.contains("text_encoder_2") {
            let second = try source.configuration("text_encoder_2")
            lists.append(("text_encoder_2", try CLIPTextModelConfiguration(file: second, hasProjection: true).tensors))
        }
        for (component, tensors) in lists {
            let checkpoint = try source.checkpoint(component)
            for tensor in tensors { try checkpoint.check(tensor.name, shape: tensor.shape) }
            let names = (fixture.components[component] ?? []).map(\.name)
                .map { $0.hasPrefix("text_model.") ? String($0.dropFirst("text_model.".count)) : $0 }
            #expect(tensors.map(\.name).sorted() == names.sorted(), "\(component)")
        }
    }

    @Test func mergesLeaveATextEncodersPrefixOut() throws {
        let fixture = try SingleFileFixture("sd1")
        let tensors = fixture.tensors()
        let renamed = tensors.map {
            SafetensorsTensor(name: $0.name.replacing(".text_model.", with: "."), shape: $0.shape, values: $0.values)
        }
        let checkpoint = try open(renamed).checkpoint("text_encoder")
        for (name, place) in fixture.components["text_encoder"] ?? [] {
            let expected = fixture.tensor(name, place, of: tensors)
            #expect(try checkpoint.floats(named: name, shape: expected.shape) == expected.values)
        }
    }

    @Test func whatIsMissingIsNamedAsTheFileWouldCallIt() throws {
        let fixture = try SingleFileFixture("sd2")
        let missing = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
        let checkpoint = try open(fixture.tensors { name, shape in name == missing ? nil : shape }).checkpoint(
            "text_encoder"
        )
        let error = try #require(throws: WeightsError.self) {
            try checkpoint.check("encoder.layers.0.self_attn.k_proj.weight", shape: [64, 64])
        }
        #expect(error.description.contains(missing) && error.description.contains(Self.name), "\(error)")
    }

    // MARK: - Configurations

    @Test(arguments: families)
    func configurationsAreThoseOfTheFolder(family: String) throws {
        let fixture = try SingleFileFixture(family)
        // Stable Diffusion 2.x of such a size has no bias that tells what it predicts.
        let source = try open(fixture.tensors())
        for (component, configuration) in fixture.configurations {
            let derived = try source.configuration(component)
            for (key, value) in configuration
            where !["attention_head_dim", "eos_token_id", "bos_token_id"].contains(key) {
                let found = derived.value(key) ?? .null
                // One number for all levels, or one for each.
                let isEqual = found == value || found.arrayValue?.allSatisfy { $0 == value } ?? false
                // What only a tokenizer, of which a file has none, could tell.
                #expect(
                    isEqual || (key == "projection_dim" && component == "text_encoder"),
                    "\(component) \(key): \(found), \(value)"
                )
            }
        }
        let unet = try source.configuration("unet")
        #expect(unet.value("attention_head_dim") == fixture.configurations["unet"]?["attention_head_dim"])
    }

    /// The tensors that configurations are derived from, at the size of a published model.
    private func published(
        channels: [Int],
        depths: [Int],
        context: Int,
        isLinear: Bool,
        inChannels: Int = 4,
        others: [String: [Int]]
    ) -> TensorShapes {
        var shapes = others
        let prefix = "model.diffusion_model."
        func block(_ name: String, _ width: Int, _ depth: Int) {
            shapes["\(prefix)\(name).0.in_layers.2.weight"] = [width, 1, 3, 3]
            guard depth > 0 else { return }
            shapes["\(prefix)\(name).1.proj_in.weight"] = isLinear ? [width, width] : [width, width, 1, 1]
            for index in 0..<depth {
                shapes["\(prefix)\(name).1.transformer_blocks.\(index).attn2.to_k.weight"] = [width, context]
            }
        }
        shapes[prefix + "input_blocks.0.0.weight"] = [channels[0], inChannels, 3, 3]
        shapes[prefix + "out.2.weight"] = [4, channels[0], 3, 3]
        var index = 1
        for (level, width) in channels.enumerated() {
            for _ in 0..<2 {
                block("input_blocks.\(index)", width, depths[level])
                index += 1
            }
            guard level < channels.count - 1 else { continue }
            shapes["\(prefix)input_blocks.\(index).0.op.weight"] = [width, width, 3, 3]
            index += 1
        }
        shapes[prefix + "middle_block.0.in_layers.0.weight"] = [1280]
        for index in 0..<(depths.last == 0 ? 1 : depths[depths.count - 1]) {
            shapes["\(prefix)middle_block.1.transformer_blocks.\(index).attn2.to_k.weight"] = [1280, context]
        }
        index = 0
        for (level, width) in channels.enumerated().reversed() {
            for _ in 0..<3 {
                block("output_blocks.\(index)", width, depths[level])
                index += 1
            }
        }
        return TensorShapes(shapes)
    }

    @Test func publishedModelsAreRecognised() throws {
        let clip = "cond_stage_model.transformer.text_model."
        let first = published(
            channels: [320, 640, 1280, 1280],
            depths: [1, 1, 1, 0],
            context: 768,
            isLinear: false,
            inChannels: 9,
            others: [
                clip + "embeddings.token_embedding.weight": [49408, 768],
                clip + "embeddings.position_embedding.weight": [77, 768],
                clip + "encoder.layers.0.mlp.fc1.weight": [3072, 768],
            ]
        )
        #expect(FileKind(first) == .model(.stableDiffusion1))
        var derived = SingleFileConfiguration(.stableDiffusion1, first, path: "x")
        let unet = try UNet2DConditionModelConfiguration(
            file: ConfigurationFile(path: "x", values: derived.unet(sampleSize: 64))
        )
        var expected = UNet2DConditionModelConfiguration()
        expected.inChannels = 9
        expected.crossAttentionDim = 768
        #expect(unet == expected)
        #expect(derived.index()["_class_name"] == "StableDiffusionInpaintPipeline")
        let text = try CLIPTextModelConfiguration(file: ConfigurationFile(path: "x", values: derived.textEncoder().0))
        #expect(text.heads == 12 && text.hiddenAct == .quickGELU && text.intermediateSize == 3072)

        let second = published(
            channels: [320, 640, 1280, 1280],
            depths: [1, 1, 1, 0],
            context: 1024,
            isLinear: true,
            others: Dictionary(
                uniqueKeysWithValues: (0..<24).map {
                    ("cond_stage_model.model.transformer.resblocks.\($0).mlp.c_fc.weight", [4096, 1024])
                } + [
                    ("cond_stage_model.model.token_embedding.weight", [49408, 1024]),
                    ("cond_stage_model.model.positional_embedding", [77, 1024]),
                ]
            )
        )
        #expect(FileKind(second) == .model(.stableDiffusion2))
        derived = SingleFileConfiguration(.stableDiffusion2, second, path: "x")
        #expect(try derived.unet(sampleSize: 96)["attention_head_dim"] == [5, 10, 20, 20])
        let openCLIP = try CLIPTextModelConfiguration(
            file: ConfigurationFile(path: "x", values: derived.textEncoder().0)
        )
        #expect(openCLIP.layers == 23 && openCLIP.heads == 16 && openCLIP.hiddenAct == .gelu)

        let third = published(
            channels: [320, 640, 1280],
            depths: [0, 2, 10],
            context: 2048,
            isLinear: true,
            others: [
                "model.diffusion_model.label_emb.0.0.weight": [1280, 2816],
                "conditioner.embedders.1.model.text_projection": [1280, 1280],
            ]
        )
        #expect(FileKind(third) == .model(.stableDiffusionXL))
        let xl = try SingleFileConfiguration(.stableDiffusionXL, third, path: "x").unet(sampleSize: 128)
        #expect(xl["attention_head_dim"] == [5, 10, 20] && xl["transformer_layers_per_block"] == [1, 2, 10])
        #expect(xl["addition_time_embed_dim"] == 256 && xl["projection_class_embeddings_input_dim"] == 2816)
        #expect(xl["down_block_types"] == ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"])
    }

    /// Numbers beside the weights, metadata, another tensor of a name and length -> what is predicted.
    @Test(
        arguments: [
            ([:], [:], [], "v_prediction"), (["global_step": 875_000], [:], [], "epsilon"),
            (["global_step": 110_000], [:], [], "v_prediction"),
            ([:], ["modelspec.prediction_type": "epsilon"], [], "epsilon"),
            ([:], ["modelspec.prediction_type": "v"], [], "v_prediction"), ([:], [:], [0.2, -0.2], "v_prediction"),
            ([:], [:], [0.05, -0.05], "epsilon"),
        ] as [([String: Int], [String: String], [Float], String)]
    )
    func whatIsPredictedIsTold(numbers: [String: Int], metadata: [String: String], bias: [Float], expected: String)
        throws
    {
        let name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
        let others =
            [
                SafetensorsTensor(
                    name: "model.diffusion_model.input_blocks.0.0.weight",
                    shape: [1, 4, 1, 1],
                    values: [0, 0, 0, 0]
                )
            ] + (bias.isEmpty ? [] : [SafetensorsTensor(name: name, shape: [2], values: bias)])
        let directory = try TemporaryDirectory()
        let bytes = numbers.isEmpty ? safetensors(others, metadata: metadata) : torchFile(others, numbers: numbers)
        let file = try WeightFile(path: directory.write(bytes, to: "x"))
        #expect(file.predictionType(.stableDiffusion2) == expected)
        #expect(file.predictionType(.stableDiffusion1) == (metadata.values.contains("v") ? "v_prediction" : "epsilon"))
        #expect(
            ModelFamily.stableDiffusion2.nativeSize(predictionType: expected) == (expected == "epsilon" ? 512 : 768)
        )
    }

    @Test func modelsThatSayTheyPredictVelocityAreBelieved() throws {
        let fixture = try SingleFileFixture("sd1-distilled")
        let marks = ["v_pred", "ztsnr"].map { SafetensorsTensor(name: $0, shape: [1], values: [1]) }
        let scheduler = try SchedulerConfiguration(file: open(fixture.tensors() + marks).configuration("scheduler"))
        #expect(scheduler.predictionType == .vPrediction && scheduler.rescaleBetasZeroSNR)
        // Who knows better can say so, of a folder as well.
        let sample = try ModelSource(path: demoModelPath, prediction: .sample).configuration("scheduler")
        #expect(sample.value("prediction_type") == "sample")
    }

    // MARK: - Tokenizers

    @Test func theVocabularyWithinTheProgramIsCLIPs() throws {
        var text = CLIPTextModelConfiguration()
        text.vocabSize = 49408
        // Where "!" fills up a prompt it is a token of its own in the text as well, in transformers too.
        let prompt = "a Red circle, on a 日本 background"
        let expected = try CLIPTokenizer(directory: demoModelPath + "/tokenizer", textEncoder: text).tokenize(prompt)
        let first = try CLIPTokenizer(files: .embedded(padToken: "<|endoftext|>"), textEncoder: text)
        #expect(first.tokenize(prompt) == expected)
        let second = try CLIPTokenizer(files: .embedded(padToken: "!"), textEncoder: text)
        #expect(second.tokenize(prompt).ids.prefix(expected.count) == expected.ids.prefix(expected.count))
        #expect(second.padID == 0 && second.tokenize("").ids.last == 0)
    }

    @Test func aTokenizerBesideTheFileIsUsed() throws {
        let fixture = try SingleFileFixture("sd1-distilled")
        let directory = try TemporaryDirectory()
        let tensors = fixture.tensors { $0.hasSuffix("token_embedding.weight") ? [49408, $1[1]] : $1 }
        let path = try directory.write(safetensors(tensors), to: Self.name)
        let source = try ModelSource(path: path)
        let text = try CLIPTextModelConfiguration(file: source.configuration("text_encoder"))
        #expect(try source.tokenizer("tokenizer", textEncoder: text).padID == 49407)
        for file in ["vocab.json", "merges.txt"] {
            try directory.write(
                try readFile(demoModelPath + "/tokenizer/" + file, maximumBytes: 1 << 20),
                to: "tokenizer/" + file
            )
        }
        try directory.write(#"{"pad_token": "!"}"#, to: "tokenizer/tokenizer_config.json")
        #expect(try source.tokenizer("tokenizer", textEncoder: text).padID == 0)
    }

    // MARK: - Autoencoders from elsewhere

    @Test func autoencodersComeFromFilesAndFolders() throws {
        let fixture = try SingleFileFixture("sd1")
        let all = fixture.tensors()
        let prefix = "first_stage_model."
        let own = all.filter { $0.name.hasPrefix(prefix) }
        let bare = own.map {
            SafetensorsTensor(name: String($0.name.dropFirst(prefix.count)), shape: $0.shape, values: $0.values)
        }
        let components = fixture.components["vae"] ?? []
        let diffusers = components.map { fixture.tensor($0.name, $0.source, of: all) }
        let directory = try TemporaryDirectory()
        var configuration = try #require(fixture.configurations["vae"])
        configuration["scaling_factor"] = 0.5
        try directory.write(JSONValue.object(configuration).serialized, to: "folder/config.json")
        try directory.write(safetensors(diffusers), to: "folder/diffusion_pytorch_model.safetensors")
        try directory.write(JSONValue.object(configuration).serialized, to: "model/vae/config.json")
        try directory.write(safetensors(diffusers), to: "model/vae/diffusion_pytorch_model.safetensors")
        let xl = try SingleFileFixture("sdxl").tensors()
        let whole = try directory.write(safetensors(xl), to: "xl.safetensors")
        for (name, bytes, factor) in [
            ("bare.ckpt", torchFile(bare, numbers: [:]), 0.18215), ("bare.safetensors", safetensors(bare), 0.18215),
            ("diffusers.safetensors", safetensors(diffusers), 0.18215),
            ("whole.safetensors", safetensors(all), 0.18215),
            ("folder", [], 0.5), ("model", [], 0.5),
        ] as [(String, [UInt8], Double)] {
            let path = bytes.isEmpty ? directory.path + "/" + name : try directory.write(bytes, to: name)
            let source = try ModelSource(path: demoModelPath, vae: path)
            let checkpoint = try source.checkpoint("vae")
            for tensor in diffusers {
                #expect(
                    try checkpoint.floats(named: tensor.name, shape: tensor.shape) == tensor.values,
                    "\(name) \(tensor.name)"
                )
            }
            let vae = try AutoencoderKLConfiguration(file: source.configuration("vae"))
            // The scaling factor belongs to the model that the autoencoder is for.
            #expect(vae.scalingFactor == factor && vae.blockOutChannels == [32, 32, 64], "\(name)")
            let forXL = try ModelSource(path: whole, vae: path).configuration("vae")
            #expect(forXL.value("scaling_factor")?.doubleValue == (factor == 0.5 ? 0.5 : 0.13025))
        }
        // The model itself needs none then.
        let without = try directory.write(
            safetensors(all.filter { !$0.name.hasPrefix(prefix) }),
            to: "without.safetensors"
        )
        let error = try #require(throws: ConfigurationFileError.self) { try ModelSource(path: without) }
        #expect(error.description.contains("model.vae"))
        #expect(try ModelSource(path: without, vae: directory.path + "/folder").contains("vae"))
        #expect(throws: WeightsError.self) { try ModelSource(path: demoModelPath, vae: directory.path + "/nothing") }
    }

    // MARK: - What is no model

    @Test(
        arguments: [
            (
                ["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": [4, 768]],
                "a LoRA for Stable Diffusion 1.x; use it with loras:"
            ),
            (
                ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": [8, 2048]],
                "a LoRA for Stable Diffusion XL"
            ),
            (["unet.mid_block.attentions.0.proj_in.lora.down.weight": [8, 64]], "a LoRA; use it with loras:"),
            (["emb_params": [4, 768]], "a textual inversion for Stable Diffusion 1.x"),
            (["string_to_param.*": [1, 1024]], "a textual inversion for Stable Diffusion 2.x"),
            (["<cat>": [768]], "a textual inversion"),
            (["clip_l": [2, 768], "clip_g": [2, 1280]], "a textual inversion for Stable Diffusion XL"),
            (
                ["first_stage_model.decoder.up.0.block.0.conv1.weight": [1, 1, 3, 3]],
                "an autoencoder (VAE); give it as model.vae"
            ),
            (["decoder.up_blocks.0.resnets.0.conv1.weight": [1, 1, 3, 3]], "an autoencoder"),
            (
                ["conv_in.weight": [1, 4, 3, 3], "down_blocks.0.resnets.0.norm1.weight": [1]],
                "a UNet in diffusers' naming; give the folder"
            ),
            (["text_model.encoder.layers.0.self_attn.q_proj.weight": [1, 1]], "a text encoder"),
            (["double_blocks.0.img_attn.norm.key_norm.scale": [1]], "a Flux model"),
            (["model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias": [1]], "Stable Diffusion 3"),
            (["control_model.time_embed.0.weight": [1]], "a ControlNet"),
            (["anything": [1, 2, 3]], "no model that is known here"),
            (["model.diffusion_model.input_blocks.0.0.weight": [1, 8, 1, 1]], "InstructPix2Pix"),
            (["model.diffusion_model.input_blocks.0.0.weight": [1, 4, 1, 1]], "a UNet of an unknown family"),
            (
                [
                    "model.diffusion_model.input_blocks.0.0.weight": [1, 4, 1, 1],
                    "conditioner.embedders.0.model.ln_final.bias": [1],
                ],
                "the refiner"
            ),
        ] as [([String: [Int]], String)]
    )
    func whatIsNoModelIsNamed(shapes: [String: [Int]], words: String) throws {
        let tensors = shapes.map { name, shape in
            SafetensorsTensor(name: name, shape: shape, values: [Float](repeating: 0, count: shape.reduce(1, *)))
        }
        let error = try #require(throws: WeightsError.self) { try open(tensors) }
        #expect(error.description.contains(words) && error.description.contains(Self.name + ": this is "), "\(error)")
    }

    /// Shapes that multiply to nothing, or beyond any number, in places where they are taken apart or added up.
    @Test func shapesWithoutMeasureAreErrors() throws {
        let prefix = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
        let directory = try TemporaryDirectory()
        for shape in ["[0, 4611686018427387904, 4611686018427387904]", "[3458764513820540928, 0]", "[0]", "[]"] {
            let bytes = shape == "[]" ? 4 : 0
            let entry = "{\"dtype\":\"F32\",\"shape\":\(shape),\"data_offsets\":[0,\(bytes)]}"
            let header = Array("{\"\(prefix)\":\(entry)}".utf8)
            let path = try directory.write(bytesOf(header, data: bytes), to: Self.name)
            let names = OpenCLIPNames(prefix: "cond_stage_model.model.")
            let checkpoint = try Checkpoint(source: path, files: [WeightFile(path: path)]) { names($0) }
            #expect(throws: WeightsError.self, "\(shape)") {
                try checkpoint.floats(named: "encoder.layers.0.self_attn.v_proj.weight", shape: [1, 1])
            }
        }
        let huge = (0..<3).map {
            "\"t\($0)\":{\"dtype\":\"F4\",\"shape\":[9223372036854775807],\"data_offsets\":[0,0]}"
        }
        let header = Array("{\(huge.joined(separator: ","))}".utf8)
        let path = try directory.write(bytesOf(header, data: 0), to: Self.name)
        #expect(try ModelInspection(path: path).parts.first?.parameters == 0)
    }

    /// Whatever the shapes in a file, configurations are refused or can be walked through.
    @Test func randomShapesAreErrorsOrModels() throws {
        let fixture = try SingleFileFixture("sd1-distilled")
        var generator = TorchGenerator(seed: 5)
        var accepted = 0
        for round in 0..<150 {
            var shapes = Dictionary(uniqueKeysWithValues: fixture.shapes.map { ($0.name, $0.shape) })
            for _ in 0...(round % 4) {
                let name = fixture.shapes[Int(generator.word()) % fixture.shapes.count].name
                var shape = shapes[name] ?? []
                let dimension = shape.isEmpty ? 0 : Int(generator.word()) % shape.count
                switch generator.word() % 5 {
                case 0: shapes[name] = nil
                case 1: shapes[name] = []
                case 2: shapes[name] = Array(shape.dropFirst())
                default:
                    guard !shape.isEmpty else { continue }
                    shape[dimension] = [0, 1, 7, 100_000, Int.max][Int(generator.word() % 5)]
                    shapes[name] = shape
                }
            }
            let tensors = TensorShapes(shapes)
            guard case .model(let family) = FileKind(tensors) else { continue }
            let derived = SingleFileConfiguration(family, tensors, path: "x")
            do {
                _ = try derived.unetNames()
                let unet = try UNet2DConditionModelConfiguration(
                    file: ConfigurationFile(path: "x", values: derived.unet(sampleSize: 64))
                )
                let vae = try AutoencoderKLConfiguration(
                    file: ConfigurationFile(
                        path: "x",
                        values: derived.vae(prefix: "first_stage_model.", sampleSize: 512).0
                    )
                )
                let text = try CLIPTextModelConfiguration(
                    file: ConfigurationFile(path: "x", values: derived.textEncoder().0)
                )
                #expect(!unet.tensors.isEmpty && !vae.encoderTensors.isEmpty && !text.tensors.isEmpty)
                accepted += 1
            } catch {
                #expect(!error.description.isEmpty, "\(round): \(error)")
            }
        }
        // Most tensors say nothing that is not said by others as well.
        #expect(accepted > 30 && accepted < 148, "\(accepted)")
    }

    private func bytesOf(_ header: [UInt8], data: Int) -> [UInt8] {
        bytes(UInt64(header.count)) + header + [UInt8](repeating: 0, count: data)
    }

    @Test func halvesOfModelsAreErrors() throws {
        let fixture = try SingleFileFixture("sd1-distilled")
        for (prefix, reason) in [
            ("cond_stage_model.transformer.text_model.embeddings.token", "no text encoder"),
            ("model.diffusion_model.output_blocks.5.", "blocks on its way up"),
            ("model.diffusion_model.input_blocks.1.", "level without blocks"),
            ("first_stage_model.decoder.up.0.", "no autoencoder"),
            ("model.diffusion_model.out.2.weight", "no way in or out"),
        ] {
            let tensors = fixture.tensors { $0.hasPrefix(prefix) ? nil : $1 }
            let error = try #require(throws: ConfigurationFileError.self) { try open(tensors) }
            #expect(error.description.contains(reason) && error.file.hasSuffix(Self.name), "\(error)")
        }
    }
}

/// Whole pictures, on a device.
@Suite(.requiresDevice) @DeviceActor
struct SingleFilePictureTests {
    /// A folder of diffusers' and a single file with the same numbers.
    private func twins(_ family: String) throws -> (TemporaryDirectory, folder: String, file: String) {
        let fixture = try SingleFileFixture(family)
        let tensors = fixture.tensors(isDrawable: true) {
            $0.hasSuffix("token_embedding.weight") ? [49408, $1[1]] : $1
        }
        let directory = try TemporaryDirectory()
        let file = try directory.write(safetensors(tensors), to: "model.safetensors")
        let source = try ModelSource(path: file)
        for (component, names) in fixture.components {
            let base = component.hasPrefix("text_encoder") ? "model" : "diffusion_pytorch_model"
            let own = names.map { fixture.tensor($0.name, $0.source, of: tensors) }
            try directory.write(safetensors(own), to: "folder/\(component)/\(base).safetensors")
            var configuration = try #require(fixture.configurations[component])
            if component.hasPrefix("text_encoder") {
                // As a file has it, which knows its vocabulary.
                configuration["vocab_size"] = 49408
                configuration["eos_token_id"] = 49407
            }
            try directory.write(JSONValue.object(configuration).serialized, to: "folder/\(component)/config.json")
        }
        let isXL = family == "sdxl"
        let index =
            #"{"_class_name": "StableDiffusion\#(isXL ? "XL" : "")Pipeline", "#
            + #""text_encoder": ["transformers", "CLIPTextModel"], "#
            + #""text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "#
            + #""tokenizer_2": ["transformers", "CLIPTokenizer"], "#
            + #""tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "#
            + #""vae": ["diffusers", "AutoencoderKL"]}"#
        try directory.write(index, to: "folder/model_index.json")
        let prediction = try #require(try source.configuration("scheduler").value("prediction_type")?.stringValue)
        try directory.write(
            "{\"beta_start\": 0.00085, \"beta_end\": 0.012, \"beta_schedule\": \"scaled_linear\", \"set_alpha_to_one\": false, "
                + "\"prediction_type\": \"\(prediction)\"}",
            to: "folder/scheduler/scheduler_config.json"
        )
        for folder in ["tokenizer"] + (isXL ? ["tokenizer_2"] : []) {
            let pad = family == "sd2" || folder == "tokenizer_2" ? "!" : "<|endoftext|>"
            try directory.write(
                "{\"pad_token\": \"\(pad)\", \"model_max_length\": 77}",
                to: "folder/\(folder)/tokenizer_config.json"
            )
            for name in ["vocab.json", "merges.txt"] {
                try directory.link("folder/\(folder)/\(name)", to: demoModelPath + "/tokenizer/" + name)
            }
        }
        return (directory, directory.path + "/folder", file)
    }

    @Test(arguments: ["sd1", "sd2", "sdxl"])
    func aFileDrawsWhatItsFolderDraws(family: String) throws {
        let (directory, folder, file) = try twins(family)
        var pictures: [GeneratedImage] = []
        for path in [folder, file] {
            var options = PipelineOptions(modelPath: path, precision: .float32, cacheDirectory: testCacheDirectory)
            options.device.gemm = .builtin
            options.device.platform = ProcessInfo.processInfo.environment["DIFFUSED_TEST_PLATFORM"]
            let pipeline = try StableDiffusionPipeline(options, logger: testLogger)
            let request = GenerationRequest(
                prompt: "a red circle",
                negativePrompt: "",
                width: 64,
                height: 64,
                steps: 2,
                guidanceScale: 5,
                seed: Seed(UInt64(3))
            )
            let generation = try pipeline.prepare(request)
            while generation.completedSteps < generation.totalSteps { try generation.step() }
            pictures.append(try generation.decode())
        }
        #expect(pictures[0].pixels == pictures[1].pixels)
        #expect(Set(pictures[0].pixels).count > 8, "a picture of one grey would hide every difference")
        withExtendedLifetime(directory) {}
    }
}
