// The configurations of a single file, which has none: what diffusers' folders of the same models say in JSON, derived from
// the names and shapes of the tensors. What these cannot tell is fixed in each family (heads, activation, scaling factor).

internal import JSON

/// Derives configurations from tensors.
struct SingleFileConfiguration {
    /// The family the file belongs to.
    let family: ModelFamily
    private let tensors: TensorShapes
    private let path: String

    /// The tensors of a file; the path is for messages.
    init(_ family: ModelFamily, _ tensors: TensorShapes, path: String) {
        self.family = family
        self.tensors = tensors
        self.path = path
    }

    private func failure(_ found: String) -> ConfigurationFileError {
        ConfigurationFileError(file: path, found: found)
    }

    // MARK: - UNet

    /// One level of the UNet's way down.
    private struct Level {
        var channels = 0
        var layers = 0
        /// Transformer blocks within an attention; 0 without attention.
        var depth = 0
    }

    /// What `unet/config.json` would say.
    func unet(sampleSize: Int) throws(ConfigurationFileError) -> JSONObject {
        let levels = try levels()
        let prefix = LDMUNetNames.prefix
        let up = try upAttention(levels)
        var depths = levels.map(\.depth)
        let hasMiddle = tensors.contains(prefix + "middle_block.0.in_layers.0.weight")
        let middleDepth = depth(prefix + "middle_block.1")
        if hasMiddle, let last = depths.last {
            guard middleDepth > 0, last == 0 || last == middleDepth else {
                throw failure("the UNet's middle block has \(middleDepth) transformer blocks, its last level \(last)")
            }
            depths[depths.count - 1] = middleDepth
        }
        // Any of them, but always the same.
        let contexts = tensors.names.filter { $0.hasPrefix(prefix) && $0.hasSuffix(".attn2.to_k.weight") }
        guard let context = contexts.min(),
            let contextShape = tensors[context], contextShape.count == 2,
            let projection = tensors[context.replacing(/transformer_blocks.*/, with: "proj_in.weight")],
            let input = tensors[prefix + "input_blocks.0.0.weight"], input.count == 4,
            let output = tensors[prefix + "out.2.weight"], output.count == 4
        else { throw failure("the UNet has no cross-attention, or no way in or out") }
        // Today's models have heads of 64 channels and linear projections, the first ones 8 heads and 1x1 convolutions.
        let isLinear = projection.count == 2
        let heads: JSONValue = isLinear ? .array(levels.map { .init(max($0.channels / 64, 1)) }) : 8
        var result: JSONObject = [
            "_class_name": "UNet2DConditionModel", "sample_size": .init(sampleSize), "in_channels": .init(input[1]),
            "out_channels": .init(output[0]), "block_out_channels": .array(levels.map { .init($0.channels) }),
            "layers_per_block": .array(levels.map { .init($0.layers) }),
            "down_block_types": .array(levels.map { $0.depth > 0 ? "CrossAttnDownBlock2D" : "DownBlock2D" }),
            "mid_block_type": hasMiddle ? "UNetMidBlock2DCrossAttn" : .null,
            "up_block_types": .array(up.map { $0 ? "CrossAttnUpBlock2D" : "UpBlock2D" }),
            "transformer_layers_per_block": .array(depths.map { .init(max($0, 1)) }), "attention_head_dim": heads,
            "cross_attention_dim": .init(contextShape[1]), "use_linear_projection": .bool(isLinear),
        ]
        if let classes = tensors[prefix + "label_emb.0.0.weight"], classes.count == 2 {
            // Six numbers about the picture's size, as many sinusoids each, and the pooled text beside them.
            let pooled = tensors[Self.secondEncoder + "text_projection"]?.last ?? 1280
            result["addition_embed_type"] = "text_time"
            result["addition_time_embed_dim"] = .init(max((classes[1] - pooled) / 6, 1))
            result["projection_class_embeddings_input_dim"] = .init(classes[1])
        }
        return result
    }

    /// The UNet's names, which depend on its shape.
    func unetNames() throws(ConfigurationFileError) -> LDMUNetNames {
        let levels = try levels()
        return LDMUNetNames(layersPerBlock: levels.map(\.layers), upBlocksHaveAttention: try upAttention(levels))
    }

    private func depth(_ attention: String) -> Int {
        tensors.count { "\(attention).transformer_blocks.\($0).attn2.to_k.weight" }
    }

    /// Walks down the numbered blocks: a level ends with the convolution that halves the resolution.
    private func levels() throws(ConfigurationFileError) -> [Level] {
        var levels: [Level] = []
        var level = Level()
        var index = 1
        while true {
            let block = "\(LDMUNetNames.prefix)input_blocks.\(index)"
            if let convolution = tensors["\(block).0.in_layers.2.weight"], let channels = convolution.first {
                let depth = depth("\(block).1")
                guard level.layers == 0 || (level.channels == channels && level.depth == depth) else {
                    throw failure("the blocks of one level of the UNet differ, which no model of diffusers' can have")
                }
                level = Level(channels: channels, layers: level.layers + 1, depth: depth)
            } else if tensors.contains("\(block).0.op.weight") {
                levels.append(level)
                level = Level()
            } else {
                break
            }
            index += 1
        }
        levels.append(level)
        guard levels.allSatisfy({ $0.layers > 0 }) else { throw failure("the UNet has a level without blocks") }
        return levels
    }

    /// Whether each up block has attention; checks that there are as many blocks as the way down asks for.
    private func upAttention(_ levels: [Level]) throws(ConfigurationFileError) -> [Bool] {
        var index = 0
        var result: [Bool] = []
        for level in levels.reversed() {
            result.append(depth("\(LDMUNetNames.prefix)output_blocks.\(index).1") > 0)
            index += level.layers + 1
        }
        let count = tensors.count { "\(LDMUNetNames.prefix)output_blocks.\($0).0.in_layers.2.weight" }
        guard count == index else {
            throw failure("the UNet has \(count) blocks on its way up, its way down asks for \(index)")
        }
        return result
    }

    // MARK: - Autoencoder

    /// What `vae/config.json` would say of an autoencoder, and its names.
    ///
    /// - Parameters:
    ///   - prefix: What stands before its names in the original naming; nil for diffusers' naming.
    ///   - sampleSize: Of the pictures it was trained with.
    func vae(prefix: String?, sampleSize: Int) throws(ConfigurationFileError) -> (JSONObject, TensorNaming) {
        let levels = tensors.count { level in
            prefix.map { "\($0)decoder.up.\(level).block.0.conv1.weight" }
                ?? "decoder.up_blocks.\(level).resnets.0.conv1.weight"
        }
        let names: TensorNaming
        if let prefix {
            let original = LDMAutoencoderNames(levels: levels, prefix: prefix)
            names = { original($0) }
        } else {
            names = TensorNames.diffusers
        }
        func shape(_ name: String) -> [Int]? {
            for stored in names(name) { if let shape = tensors[stored.name] { return shape } }
            return nil
        }
        let channels = (0..<levels).reversed().map {
            shape("decoder.up_blocks.\($0).resnets.0.conv1.weight")?.first ?? 0
        }
        var layers = 0
        while shape("decoder.up_blocks.0.resnets.\(layers).conv1.weight") != nil { layers += 1 }
        guard levels > 0, layers > 1, let input = shape("decoder.conv_in.weight"), input.count == 4,
            let output = shape("decoder.conv_out.weight")?.first
        else { throw failure("there is no autoencoder (first_stage_model.decoder) in it; name one with model.vae") }
        let configuration: JSONObject = [
            "_class_name": "AutoencoderKL", "in_channels": .init(output), "out_channels": .init(output),
            "block_out_channels": .array(channels.map { .init($0) }),
            "down_block_types": .array(channels.map { _ in "DownEncoderBlock2D" }),
            "up_block_types": .array(channels.map { _ in "UpDecoderBlock2D" }), "layers_per_block": .init(layers - 1),
            "latent_channels": .init(input[1]), "sample_size": .init(sampleSize),
            "scaling_factor": .init(family.scalingFactor),
            "use_quant_conv": .bool(shape("quant_conv.weight") != nil),
            "use_post_quant_conv": .bool(shape("post_quant_conv.weight") != nil),
            "mid_block_add_attention": .bool(shape("decoder.mid_block.attentions.0.to_q.weight") != nil),
        ]
        return (configuration, names)
    }

    // MARK: - Text encoders

    private static let firstEncoders = [
        ModelFamily.stableDiffusion1: "cond_stage_model.transformer.",
        .stableDiffusionXL: "conditioner.embedders.0.transformer.",
    ]
    private static let secondEncoder = "conditioner.embedders.1.model."

    /// What `text_encoder/config.json` would say, and the encoder's names.
    func textEncoder() throws(ConfigurationFileError) -> (JSONObject, TensorNaming) {
        if let prefix = Self.firstEncoders[family] {
            let names = LDMCLIPNames(prefix: prefix)
            return (try textEncoder({ names($0) }, isOpenCLIP: false), { names($0) })
        }
        let names = OpenCLIPNames(prefix: "cond_stage_model.model.")
        var configuration = try textEncoder({ names($0) }, isOpenCLIP: true)
        // Stable Diffusion 2.x reads the last layer but one, and diffusers leaves the last one out.
        if let layers = configuration["num_hidden_layers"]?.integerValue, layers > 1, layers != 23 {
            configuration["num_hidden_layers"] = .init(layers - 1)
        }
        return (configuration, { names($0) })
    }

    /// What `text_encoder_2/config.json` would say, and the encoder's names.
    func secondTextEncoder() throws(ConfigurationFileError) -> (JSONObject, TensorNaming) {
        let names = OpenCLIPNames(prefix: Self.secondEncoder)
        return (try textEncoder({ names($0) }, isOpenCLIP: true), { names($0) })
    }

    private func textEncoder(_ names: TensorNaming, isOpenCLIP: Bool) throws(ConfigurationFileError) -> JSONObject {
        func shape(_ name: String) -> [Int]? {
            for stored in names(name) { if let shape = tensors[stored.name] { return shape } }
            return nil
        }
        guard let embedding = shape("embeddings.token_embedding.weight"), embedding.count == 2,
            let positions = shape("embeddings.position_embedding.weight")?.first,
            let inner = shape("encoder.layers.0.mlp.fc1.weight")?.first
        else {
            let prefix = names("embeddings.token_embedding.weight").first?.name ?? ""
            throw failure("there is no text encoder in it (\(prefix)); a UNet alone is not a model")
        }
        var layers = 0
        while shape("encoder.layers.\(layers).mlp.fc1.weight") != nil { layers += 1 }
        // Every CLIP has heads of 64 channels.
        let width = embedding[1]
        // Stored to be multiplied from the right: rows are the width, columns what comes out.
        let projection = shape("text_projection.weight")?.last ?? width
        return [
            "model_type": "clip_text_model", "vocab_size": .init(embedding[0]), "hidden_size": .init(width),
            "intermediate_size": .init(inner), "num_hidden_layers": .init(layers),
            "num_attention_heads": .init(max(width / 64, 1)), "max_position_embeddings": .init(positions),
            "hidden_act": isOpenCLIP ? "gelu" : "quick_gelu", "layer_norm_eps": 1e-5,
            "bos_token_id": .init(max(embedding[0] - 2, 0)), "eos_token_id": .init(max(embedding[0] - 1, 0)),
            "projection_dim": .init(projection),
        ]
    }

    // MARK: - The rest

    /// What `scheduler/scheduler_config.json` would say.
    func scheduler(predictionType: String) -> JSONObject {
        var result: JSONObject = [
            "_class_name": .string(family.schedulerClass), "num_train_timesteps": 1000, "beta_start": 0.00085,
            "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": .string(predictionType),
            "steps_offset": 1, "set_alpha_to_one": false, "clip_sample": false, "skip_prk_steps": true,
            "timestep_spacing": "leading",
        ]
        // Trainers of models with zero terminal SNR leave a tensor of this name for whoever loads them.
        if tensors.contains("ztsnr") { result["rescale_betas_zero_snr"] = true }
        return result
    }

    /// What `model_index.json` would say.
    func index() -> JSONObject {
        let input = tensors[LDMUNetNames.prefix + "input_blocks.0.0.weight"]
        let isXL = family == .stableDiffusionXL
        let kind = input?.dropFirst().first == 9 ? "Inpaint" : ""
        var result: JSONObject = [
            "_class_name": .string("StableDiffusion\(isXL ? "XL" : "")\(kind)Pipeline"),
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", .string(family.schedulerClass)],
        ]
        if isXL {
            result["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
            result["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
            result["force_zeros_for_empty_prompt"] = true
        }
        return result
    }
}

extension ModelFamily {
    /// What latents are divided by before decoding.
    var scalingFactor: Double { self == .stableDiffusionXL ? 0.13025 : 0.18215 }

    /// The scheduler in diffusers' folder of the family's first model.
    fileprivate var schedulerClass: String {
        switch self {
        case .stableDiffusion1: "PNDMScheduler"
        case .stableDiffusion2: "DDIMScheduler"
        case .stableDiffusionXL: "EulerDiscreteScheduler"
        }
    }

    /// Width and height in pixels of the pictures it was trained with.
    func nativeSize(predictionType: String) -> Int {
        switch self {
        case .stableDiffusion1: 512
        case .stableDiffusion2: predictionType == "v_prediction" ? 768 : 512
        case .stableDiffusionXL: 1024
        }
    }
}
