// Configurations of checkpoints: the defaults of diffusers and transformers, the quirks of published files, and the
// refusal of everything that is not computed.

import Foundation
import JSON
@testable import StableDiffusion
import TestSupport
import Testing

@Suite struct ConfigurationTests {
    private func file(_ values: JSONObject) -> ConfigurationFile {
        ConfigurationFile(path: "unet/config.json", values: values)
    }

    private func integers(_ values: Int...) -> JSONValue { .array(values.map { .init($0) }) }

    @Test func theDemoModelIsRead() throws {
        let model = try ModelConfiguration(folder: demoModelPath)
        #expect(model.nativeSize == 64)
        #expect(model.unet.blockOutChannels == [64, 64, 96])
        #expect(model.unet.attentionHeads == [4, 4, 4])
        #expect(model.unet.layersPerBlock == [1, 1, 1])
        #expect(model.unet.upBlockTypes == [.upBlock2D, .crossAttnUpBlock2D, .crossAttnUpBlock2D])
        #expect(model.vae.scaleFactor == 8)
        #expect(model.vae.normNumGroups == 1)
        #expect(model.textEncoders[0].layers == 4)
        #expect(model.textEncoders[0].hiddenAct == .quickGELU)
        #expect(model.scheduler.betaSchedule == .scaledLinear)
    }

    @Test func missingKeysMeanDiffusersDefaults() throws {
        let unet = try UNet2DConditionModelConfiguration(file: file([:]))
        #expect(unet == UNet2DConditionModelConfiguration())
        #expect(unet.blockOutChannels == [320, 640, 1280, 1280])
        #expect(unet.crossAttentionDim == 1280)
        let text = try CLIPTextModelConfiguration(file: file([:]))
        #expect(text.hiddenSize == 512 && text.heads == 8 && text.layers == 12)
        let vae = try AutoencoderKLConfiguration(file: file([:]))
        #expect(vae.blockOutChannels == [64] && vae.scalingFactor == 0.18215)
    }

    @Test func headsAreReadWhicheverWayTheyAreWritten() throws {
        let one = try UNet2DConditionModelConfiguration(file: file(["attention_head_dim": 8]))
        #expect(one.attentionHeads == [8, 8, 8, 8])
        let list = try UNet2DConditionModelConfiguration(file: file(["attention_head_dim": integers(5, 10, 20, 20)]))
        #expect(list.attentionHeads == [5, 10, 20, 20])
        let named = try UNet2DConditionModelConfiguration(
            file: file(["attention_head_dim": 64, "num_attention_heads": integers(5, 10, 20, 20)])
        )
        #expect(named.attentionHeads == [5, 10, 20, 20])
    }

    @Test func listsPerLevelAreRead() throws {
        let unet = try UNet2DConditionModelConfiguration(
            file: file([
                "layers_per_block": integers(1, 2, 3, 4), "transformer_layers_per_block": integers(1, 2, 10, 1),
                "cross_attention_dim": integers(768, 768, 768, 768), "sample_size": integers(96, 64),
                "mid_block_type": .null, "only_cross_attention": .array(Array(repeating: .bool(false), count: 4)),
                "time_embedding_dim": 512, "future_key_without_effect": .string("x"),
            ])
        )
        #expect(unet.layersPerBlock == [1, 2, 3, 4])
        #expect(unet.transformerLayersPerBlock == [1, 2, 10, 1])
        #expect(unet.crossAttentionDim == 768)
        #expect(unet.sampleSize == 96)
        #expect(unet.midBlockType == nil)
        #expect(unet.timeEmbeddingDim == 512)
    }

    @Test(arguments: [("0.2.2", 32, 64), ("0.8.0", 32, 64), ("0.9.0", 32, 32), ("0.42.1", 8, 8), ("0.6.0", 96, 96)])
    func sampleSizesOfOldFilesAreCorrected(version: String, size: Int, expected: Int) throws {
        let unet = try UNet2DConditionModelConfiguration(
            file: file(["_diffusers_version": .string(version), "sample_size": .init(size)])
        )
        #expect(unet.sampleSize == expected)
    }

    @Test(arguments: [
        ("class_embed_type", JSONValue.string("timestep")), ("addition_embed_type", .string("text_image")),
        ("encoder_hid_dim_type", .string("text_proj")), ("encoder_hid_dim", .init(768)),
        ("resnet_time_scale_shift", .string("scale_shift")), ("time_cond_proj_dim", .init(3)),
        ("conv_in_kernel", .init(1)), ("conv_out_kernel", .init(1)), ("dual_cross_attention", .bool(true)),
        ("only_cross_attention", .bool(true)), ("center_input_sample", .bool(true)), ("act_fn", .string("gelu")),
        ("only_cross_attention", .array([.bool(false), .bool(true), .bool(false), .bool(false)])),
        ("timestep_post_act", .string("silu")), ("mid_block_type", .string("UNetMidBlock2DSimpleCrossAttn")),
        ("attention_type", .string("gated")), ("downsample_padding", .init(0)), ("num_class_embeds", .init(10)),
        ("time_embedding_type", .string("fourier")), ("time_embedding_act_fn", .string("silu")),
        ("cross_attention_norm", .string("layer_norm")), ("mid_block_only_cross_attention", .bool(true)),
        ("resnet_skip_time_act", .bool(true)), ("resnet_out_scale_factor", .init(1.5)),
        ("mid_block_scale_factor", .init(1.4)), ("reverse_transformer_layers_per_block", .array([1])),
        ("class_embeddings_concat", .bool(true)), ("_class_name", .string("UNet2DModel")),
        ("down_block_types", .array([.string("AttnDownBlock2D")])), ("up_block_types", .array([.string("UpBlock2D")])),
        ("block_out_channels", .array([])), ("block_out_channels", .array([320, -1])),
        ("block_out_channels", .array([.init(1 << 40)])), ("block_out_channels", .init(320)),
        ("norm_num_groups", .null), ("norm_num_groups", .init(0)), ("norm_num_groups", .init(33)),
        ("norm_eps", .string("small")), ("norm_eps", .init(-1)), ("in_channels", .init(4.5)),
        ("layers_per_block", .array([2])), ("layers_per_block", .init(0)),
        ("attention_head_dim", .init(7)), ("attention_head_dim", .null), ("attention_head_dim", .init(0)),
        ("cross_attention_dim", .array([1, 2, 3, 4])),
        ("use_linear_projection", .string("yes")), ("sample_size", .array([1])), ("sample_size", .init(0)),
        ("transformer_layers_per_block", .array([.array([1])])), ("freq_shift", .init(160)),
    ])
    func refusesUNetsItDoesNotCompute(key: String, value: JSONValue) throws {
        let error = try #require(throws: ConfigurationFileError.self) {
            try UNet2DConditionModelConfiguration(file: file([key: value]))
        }
        #expect(error.key == key)
        #expect(error.description.contains("unet/config.json"))
        #expect(error.allowed != nil)
    }

    @Test(arguments: [
        ("latents_mean", JSONValue.array([0])), ("shift_factor", .init(0.1)), ("act_fn", .string("relu")),
        ("_class_name", .string("AutoencoderTiny")), ("out_channels", .init(4)), ("scaling_factor", .init(0)),
        ("norm_num_groups", .init(7)), ("block_out_channels", .array([])),
        ("up_block_types", .array([.string("AttnUpDecoderBlock2D")])), ("use_post_quant_conv", .init(1)),
    ])
    func refusesAutoencodersItDoesNotCompute(key: String, value: JSONValue) throws {
        let error = try #require(throws: ConfigurationFileError.self) {
            try AutoencoderKLConfiguration(file: file([key: value]))
        }
        #expect(error.key == key)
    }

    @Test(arguments: [
        ("hidden_act", JSONValue.string("relu")), ("use_attention_mask", .bool(true)),
        ("num_attention_heads", .init(7)),
        ("model_type", .string("bert")), ("vocab_size", .init(0)), ("max_position_embeddings", .string("77")),
        ("max_position_embeddings", .init(2)),
    ])
    func refusesTextEncodersItDoesNotCompute(key: String, value: JSONValue) throws {
        let error = try #require(throws: ConfigurationFileError.self) {
            try CLIPTextModelConfiguration(file: file([key: value]))
        }
        #expect(error.key == key)
    }

    @Test func theTextEncoderOfAWholeCLIPIsFound() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.write(
            #"{"model_type": "clip", "text_config": {"hidden_size": 768, "num_attention_heads": 12}}"#,
            to: "config.json"
        )
        let text = try CLIPTextModelConfiguration(file: ConfigurationFile(path: path, nested: "text_config"))
        #expect(text.hiddenSize == 768)
    }

    // MARK: - Folders

    /// A folder of JSON files only, like the demo model's but for some files.
    private func folder(_ changes: [String: String?]) throws -> TemporaryDirectory {
        let directory = try TemporaryDirectory()
        for name in [
            "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
            "scheduler/scheduler_config.json",
        ] {
            if let change = changes[name] {
                if let change { try directory.write(change, to: name) }
            } else {
                try directory.write(readFile(demoModelPath + "/" + name, maximumBytes: 1 << 20), to: name)
            }
        }
        return directory
    }

    @Test(
        arguments: [
            ("unet/config.json", nil, "No such file"), ("model_index.json", nil, "No such file"),
            ("vae/config.json", "{", "not valid JSON"), ("vae/config.json", "[]", "instead of a JSON object"),
            ("scheduler/scheduler_config.json", "", "not valid JSON"),
            ("model_index.json", #"{"_class_name": "StableDiffusion3Pipeline"}"#, "StableDiffusion3Pipeline"),
            ("model_index.json", #"{"_class_name": "StableDiffusionPipeline", "unet": [null, null]}"#, "text_encoder"),
            ("text_encoder/config.json", #"{"hidden_size": 64, "model_type": "clip_text_model"}"#, "hidden_size, 64"),
        ] as [(String, String?, String)]
    )
    func namesTheFileOfAFolderThatIsWrong(name: String, content: String?, reason: String) throws {
        let directory = try folder([name: content])
        let error = try #require(throws: ConfigurationFileError.self) { try ModelConfiguration(folder: directory.path) }
        #expect(error.description.contains(reason), "\(error)")
        if reason != "hidden_size, 64" { #expect(error.file.hasSuffix(name)) }
    }

    /// Levels of the autoencoder and size of the latents -> what sizes are multiples of, and the model's own size.
    @Test(arguments: [(1, 8, 8, 8), (2, 9, 8, 24), (4, 8, 8, 64), (5, 8, 16, 128), (8, 1, 128, 128)])
    func sizesAreWholeLatentsAndMultiplesOfEight(levels: Int, latents: Int, multiple: Int, native: Int) throws {
        let blocks = repeatElement("\"UpDecoderBlock2D\"", count: levels).joined(separator: ",")
        let channels = repeatElement("32", count: levels).joined(separator: ",")
        let unet = String(
            decoding: try readFile(demoModelPath + "/unet/config.json", maximumBytes: 1 << 20),
            as: UTF8.self
        )
        let directory = try folder([
            "vae/config.json": "{\"block_out_channels\": [\(channels)], \"up_block_types\": [\(blocks)]}",
            "unet/config.json": unet.replacing("\"sample_size\": 8", with: "\"sample_size\": \(latents)"),
        ])
        let model = try ModelConfiguration(folder: directory.path)
        #expect(model.sizeMultiple == multiple)
        #expect(model.nativeSize == native)
    }

    @Test func refusesBetasThatCannotBeRescaled() throws {
        let error = try #require(throws: ConfigurationFileError.self) {
            try SchedulerConfiguration(
                file: file([
                    "beta_start": 0, "beta_end": 0, "rescale_betas_zero_snr": .bool(true),
                    "prediction_type": .string("v_prediction"),
                ])
            )
        }
        #expect(error.key == "rescale_betas_zero_snr")
    }

    // MARK: Stable Diffusion XL

    /// The fixture's configurations with a change to one of the files.
    private func folderOfXL(_ file: String, _ change: (inout JSONObject) -> Void) throws -> TemporaryDirectory {
        let directory = try TemporaryDirectory()
        for (name, content) in try Fixture.json("models/xl.json")["files"]?.objectValue ?? [:] {
            var object = content.objectValue ?? [:]
            if name == file { change(&object) }
            try directory.write(JSONValue.object(object).serialized, to: name)
        }
        return directory
    }

    @Test func readsStableDiffusionXL() throws {
        let directory = try folderOfXL("") { _ in }
        let model = try ModelConfiguration(folder: directory.path)
        #expect(model.textEncoders.map(\.hiddenSize) == [24, 32])
        #expect(model.textEncoders.map(\.projectionDim) == [nil, 20])
        #expect(model.hiddenState == .penultimate && model.forceZerosForEmptyPrompt && model.needsFloat32VAE)
        #expect(model.unet.textTime == .init(timeEmbedDim: 16, inputDim: 116))
        // The id that ends a text, and the largest id where the file names none that could.
        #expect(model.textEncoders[0].endPosition(in: [49406, 5, 49407, 49407]) == 2)
        #expect(model.textEncoders[1].endPosition(in: [49406, 5, 49407, 0]) == 2)
    }

    @Test(
        arguments: [
            ("model_index.json", "tokenizer_2", nil, "tokenizer_2"),
            (
                "model_index.json", "text_encoder_2", [.string("transformers"), .string("CLIPTextModel")],
                "WithProjection"
            ),
            ("unet/config.json", "cross_attention_dim", 24, "hidden_size, 56"),
            ("unet/config.json", "projection_class_embeddings_input_dim", 117, "20 of the pooled prompt and 96"),
            ("unet/config.json", "projection_class_embeddings_input_dim", 96, "more than 6 times"),
            ("unet/config.json", "addition_time_embed_dim", 15, "an even number"),
            ("unet/config.json", "addition_embed_type", nil, "text_time"),
            ("text_encoder_2/config.json", "max_position_embeddings", 50, "that of text_encoder, 77"),
            ("text_encoder_2/config.json", "projection_dim", 24, "24 of the pooled prompt"),
        ] as [(String, String, JSONValue?, String)]
    )
    func namesWhatDoesNotFitInStableDiffusionXL(file: String, key: String, value: JSONValue?, reason: String) throws {
        let directory = try folderOfXL(file) { $0[key] = value }
        let error = try #require(throws: ConfigurationFileError.self) { try ModelConfiguration(folder: directory.path) }
        #expect(error.description.contains(reason), "\(error)")
    }

    @Test func refusesModelsForOtherTasks() throws {
        let inpainting = #"""
            {"in_channels": 8, "block_out_channels": [32], "cross_attention_dim": 32, "norm_num_groups": 8,
             "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
            """#
        let directory = try folder(["unet/config.json": inpainting])
        let error = try #require(throws: ConfigurationFileError.self) { try ModelConfiguration(folder: directory.path) }
        #expect(error.key == "in_channels" && error.description.contains("inpainting"))
    }

    @Test(arguments: ["/dev/null/model", "/dev/null", ""])
    func namesAFolderThatIsNone(path: String) throws {
        let error = try #require(throws: ConfigurationFileError.self) { try ModelConfiguration(folder: path) }
        #expect(error.file == path)
    }
}
