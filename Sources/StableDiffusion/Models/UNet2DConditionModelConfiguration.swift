// The shape of the denoising network, read from `unet/config.json` with the defaults of diffusers 0.42.1
// (models/unets/unet_2d_condition.py). Every variant of that class this program does not compute is refused by key.

internal import JSON

/// Configuration of `UNet2DConditionModel`.
///
/// Lists have one element for each level, the level of full resolution first.
struct UNet2DConditionModelConfiguration: Sendable, Equatable {
    /// Kinds of blocks on the way down.
    enum DownBlockType: String, CaseIterable, Sendable {
        case crossAttnDownBlock2D = "CrossAttnDownBlock2D"
        case downBlock2D = "DownBlock2D"
    }

    /// Kinds of blocks on the way up.
    enum UpBlockType: String, CaseIterable, Sendable {
        case crossAttnUpBlock2D = "CrossAttnUpBlock2D"
        case upBlock2D = "UpBlock2D"
    }

    /// Kinds of blocks at the lowest resolution.
    enum MidBlockType: String, CaseIterable, Sendable {
        case crossAttn = "UNetMidBlock2DCrossAttn"
    }

    /// Height and width of the latents the model was trained with.
    var sampleSize = 64
    /// Channels of the latents that go in.
    var inChannels = 4
    /// Channels of the prediction.
    var outChannels = 4
    /// Channels of each level.
    var blockOutChannels = [320, 640, 1280, 1280]
    /// ResNet blocks of each level on the way down; the way up has one more.
    var layersPerBlock = [2, 2, 2, 2]
    /// Blocks on the way down.
    var downBlockTypes: [DownBlockType] = [
        .crossAttnDownBlock2D, .crossAttnDownBlock2D, .crossAttnDownBlock2D, .downBlock2D,
    ]
    /// The block in the middle; nil when the model has none.
    var midBlockType: MidBlockType? = .crossAttn
    /// Blocks on the way up, the lowest resolution first.
    var upBlockTypes: [UpBlockType] = [.upBlock2D, .crossAttnUpBlock2D, .crossAttnUpBlock2D, .crossAttnUpBlock2D]
    /// Attention heads of each level.
    ///
    /// The middle block has those of the last level.
    var attentionHeads = [8, 8, 8, 8]
    /// Transformer blocks within each attention of each level.
    ///
    /// The middle block has those of the last level.
    var transformerLayersPerBlock = [1, 1, 1, 1]
    /// Width of the text encoder's hidden states.
    var crossAttentionDim = 1280
    /// Groups of every group normalisation.
    var normNumGroups = 32
    /// Epsilon of the group normalisations outside the transformers (those use 1e-6, their layer norms 1e-5).
    var normEps = 1e-5
    /// Whether the cosines of the timestep embedding stand before the sines.
    var flipSinToCos = true
    /// Subtracted from the half width in the timestep embedding's exponent.
    var freqShift = 0.0
    /// Width of the timestep embedding after its two linear layers.
    var timeEmbeddingDim = 1280
    /// Width of the embedding of the guidance scale that distilled models are told; nil for those that are not.
    var timeCondProjDim: Int?
    /// Whether the transformers' input and output projections are linear layers instead of 1x1 convolutions.
    var useLinearProjection = false

    /// What Stable Diffusion XL tells its UNet besides the prompt's tokens; nil in other models.
    var textTime: TextTimeConfiguration?

    /// `addition_embed_type: text_time`: a pooled prompt and the sizes of the picture, added to the timestep's embedding.
    struct TextTimeConfiguration: Sendable, Equatable {
        /// Width of the embedding of each of the sizes.
        var timeEmbedDim: Int
        /// Width of pooled prompt and embedded sizes together.
        var inputDim: Int

        /// Numbers that are embedded: height and width of the original, top and left of the crop, height and width of the picture.
        static let sizes = 6

        /// Width of the pooled prompt.
        var pooledDim: Int { inputDim - Self.sizes * timeEmbedDim }
    }

    /// Levels of resolution.
    var levels: Int { blockOutChannels.count }

    /// The configuration of the original Stable Diffusion architecture, with diffusers' defaults.
    init() {}

    /// Reads the configuration of a checkpoint.
    init(file: ConfigurationFile) throws(ConfigurationFileError) {
        try Self.refuseOtherComputations(file)

        blockOutChannels = try file.integers("block_out_channels", default: blockOutChannels, in: 1...16_384)
        let levels = blockOutChannels.count
        guard levels <= Self.maximumLevels else {
            throw file.refusal("block_out_channels", allowed: "at most \(Self.maximumLevels) levels")
        }
        downBlockTypes = try file.choices("down_block_types", default: downBlockTypes)
        upBlockTypes = try file.choices("up_block_types", default: upBlockTypes)
        for (key, count) in [("down_block_types", downBlockTypes.count), ("up_block_types", upBlockTypes.count)]
        where count != levels {
            throw file.refusal(key, allowed: "as many as block_out_channels has, \(levels)")
        }
        if file.isNull("mid_block_type") {
            midBlockType = nil
        } else {
            midBlockType = try file.choice("mid_block_type", default: .crossAttn)
        }

        inChannels = try file.integer("in_channels", default: inChannels, in: 1...1024)
        outChannels = try file.integer("out_channels", default: outChannels, in: 1...1024)
        layersPerBlock = try file.integerPerLevel("layers_per_block", default: 2, levels: levels, in: 1...64)
        transformerLayersPerBlock = try file.integerPerLevel(
            "transformer_layers_per_block",
            default: 1,
            levels: levels,
            in: 1...64
        )
        crossAttentionDim = try Self.crossAttentionDim(file, levels: levels)
        normNumGroups = try file.integer("norm_num_groups", default: normNumGroups, in: 1...16_384)
        normEps = try file.number("norm_eps", default: normEps, in: 0...1)
        flipSinToCos = try file.bool("flip_sin_to_cos", default: flipSinToCos)
        freqShift = try file.number("freq_shift", default: freqShift, in: -1024...1024)
        timeEmbeddingDim =
            try file.optionalInteger("time_embedding_dim", in: 1...65_536) ?? blockOutChannels[0] * 4
        timeCondProjDim = try file.optionalInteger("time_cond_proj_dim", in: 4...65_536)
        useLinearProjection = try file.bool("use_linear_projection", default: useLinearProjection)
        textTime = try Self.textTime(file)
        sampleSize = try Self.sampleSize(file)
        attentionHeads = try headsPerLevel(file)
        try checkDivisibility(file)
    }

    /// More levels would shrink any picture to nothing.
    private static let maximumLevels = 8

    /// Keys of the class whose other values mean a computation that is not implemented here.
    private static func refuseOtherComputations(_ file: ConfigurationFile) throws(ConfigurationFileError) {
        try file.require("_class_name", oneOf: .string("UNet2DConditionModel"))
        try file.require("act_fn", oneOf: .string("silu"), .string("swish"))
        try file.require("time_embedding_type", oneOf: .string("positional"))
        try file.require("resnet_time_scale_shift", oneOf: .string("default"))
        try file.require("attention_type", oneOf: .string("default"))
        for key in ["conv_in_kernel", "conv_out_kernel"] { try file.require(key, oneOf: 3) }
        for key in ["downsample_padding", "mid_block_scale_factor", "resnet_out_scale_factor"] {
            try file.require(key, oneOf: 1)
        }
        for key in [
            "center_input_sample", "dual_cross_attention", "mid_block_only_cross_attention", "resnet_skip_time_act",
            "class_embeddings_concat",
        ] {
            try file.require(key, oneOf: .bool(false))
        }
        for key in [
            "class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type",
            "timestep_post_act", "time_embedding_act_fn", "cross_attention_norm",
            "reverse_transformer_layers_per_block",
        ] {
            try file.require(key)
        }
        if let list = file.value("only_cross_attention")?.arrayValue {
            guard list.allSatisfy({ $0 == .bool(false) }) else {
                throw file.refusal("only_cross_attention", allowed: "false")
            }
        } else {
            try file.require("only_cross_attention", oneOf: .bool(false))
        }
    }

    private static func textTime(_ file: ConfigurationFile) throws(ConfigurationFileError) -> TextTimeConfiguration? {
        guard file.value("addition_embed_type") != nil else { return nil }
        try file.require("addition_embed_type", oneOf: .string("text_time"))
        let timeEmbedDim = try file.integer("addition_time_embed_dim", default: nil, in: 2...16_384)
        let key = "projection_class_embeddings_input_dim"
        let inputDim = try file.integer(key, default: nil, in: 1...1_000_000)
        let textTime = TextTimeConfiguration(timeEmbedDim: timeEmbedDim, inputDim: inputDim)
        guard timeEmbedDim % 2 == 0 else { throw file.refusal("addition_time_embed_dim", allowed: "an even number") }
        guard textTime.pooledDim > 0 else {
            throw file.refusal(
                key,
                allowed: "more than \(TextTimeConfiguration.sizes) times addition_time_embed_dim, \(timeEmbedDim)"
            )
        }
        return textTime
    }

    private static func crossAttentionDim(
        _ file: ConfigurationFile,
        levels: Int
    ) throws(ConfigurationFileError) -> Int {
        let dims = try file.integerPerLevel("cross_attention_dim", default: 1280, levels: levels, in: 1...16_384)
        guard Set(dims).count == 1 else {
            throw file.refusal("cross_attention_dim", allowed: "the same for all levels")
        }
        return dims[0]
    }

    /// Models published before diffusers 0.9 with a smaller number mean 64, as diffusers' pipeline corrects it.
    private static func sampleSize(_ file: ConfigurationFile) throws(ConfigurationFileError) -> Int {
        let size = try file.squareSize("sample_size", default: 64, in: 1...4096)
        let version = file.value("_diffusers_version")?.stringValue?.split(separator: ".") ?? []
        guard version.count >= 2, version[0] == "0", let minor = Int(version[1]), minor < 9 else { return size }
        return file.value("sample_size")?.arrayValue == nil ? max(size, 64) : size
    }

    /// What diffusers calls `attention_head_dim` has always held the number of heads; `num_attention_heads`, where a
    /// file has it, says the same by its right name.
    private func headsPerLevel(_ file: ConfigurationFile) throws(ConfigurationFileError) -> [Int] {
        let key = file.value("num_attention_heads") != nil ? "num_attention_heads" : "attention_head_dim"
        let heads = try file.integerPerLevel(key, default: 8, levels: levels, in: 1...4096)
        for level in 0..<levels where hasAttention(atLevel: level) && blockOutChannels[level] % heads[level] != 0 {
            throw file.refusal(
                key,
                allowed: "numbers of heads that divide the channels of their level, \(blockOutChannels[level])"
            )
        }
        return heads
    }

    private func hasAttention(atLevel level: Int) -> Bool {
        downBlockTypes[level] == .crossAttnDownBlock2D
            || upBlockTypes[levels - 1 - level] == .crossAttnUpBlock2D
            || (level == levels - 1 && midBlockType == .crossAttn)
    }

    /// Every width that is normalised in groups: each level's, and the concatenations of the way up.
    private func checkDivisibility(_ file: ConfigurationFile) throws(ConfigurationFileError) {
        guard blockOutChannels.allSatisfy({ $0 % normNumGroups == 0 }) else {
            throw file.refusal("norm_num_groups", allowed: "a divisor of every number in block_out_channels")
        }
        // Half of the width is sines, half cosines.
        guard blockOutChannels[0] % 2 == 0 else {
            throw file.refusal("block_out_channels", allowed: "an even first number")
        }
        guard freqShift < Double(blockOutChannels[0] / 2) else {
            throw file.refusal("freq_shift", allowed: "less than half of the first of block_out_channels")
        }
    }
}
