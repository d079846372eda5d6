// The shape of the autoencoder, read from `vae/config.json` with the defaults of diffusers 0.42.1
// (models/autoencoders/autoencoder_kl.py).

internal import JSON

/// Configuration of `AutoencoderKL`.
struct AutoencoderKLConfiguration: Sendable, Equatable {
    /// Height and width of the pictures the model was trained with.
    var sampleSize = 32
    /// Channels of each level, the level of full resolution first.
    var blockOutChannels = [64]
    /// ResNet blocks of each encoder level; the decoder has one more.
    var layersPerBlock = 1
    /// Channels of the latents.
    var latentChannels = 4
    /// Channels of the picture.
    var outChannels = 3
    /// Groups of every group normalisation; their epsilon is 1e-6.
    var normNumGroups = 32
    /// Latents are divided by this before decoding.
    var scalingFactor = 0.18215
    /// Whether a 1x1 convolution stands before the decoder.
    var usePostQuantConv = true
    /// Whether a 1x1 convolution stands after the encoder.
    var useQuantConv = true
    /// Whether the middle block has an attention (of one head).
    var midBlockAddAttention = true
    /// Whether activations overflow in half precision; true also in files of models where they do not, so that only Stable Diffusion XL minds.
    var forceUpcast = true

    /// Pixels along each side of the square that one latent becomes.
    var scaleFactor: Int { 1 << (blockOutChannels.count - 1) }

    /// diffusers' defaults.
    init() {}

    /// Reads the configuration of a checkpoint.
    init(file: ConfigurationFile) throws(ConfigurationFileError) {
        try file.require("_class_name", oneOf: .string("AutoencoderKL"))
        try file.require("act_fn", oneOf: .string("silu"), .string("swish"))
        // Other statistics of the latents belong to other model families and their pipelines.
        try file.require("shift_factor", oneOf: 0)
        try file.require("latents_mean")
        try file.require("latents_std")

        blockOutChannels = try file.integers("block_out_channels", default: blockOutChannels, in: 1...16_384)
        guard blockOutChannels.count <= 8 else {
            throw file.refusal("block_out_channels", allowed: "at most 8 levels")
        }
        if let types = file.value("up_block_types") {
            let allowed = JSONValue.array(
                Array(repeating: .string("UpDecoderBlock2D"), count: blockOutChannels.count)
            )
            guard types == allowed else {
                throw file.refusal(
                    "up_block_types",
                    allowed: "\"UpDecoderBlock2D\" for each of the \(blockOutChannels.count) levels"
                )
            }
        } else if blockOutChannels.count != 1 {
            throw file.refusal("up_block_types", allowed: "a list with one block for each level")
        }
        layersPerBlock = try file.integer("layers_per_block", default: layersPerBlock, in: 1...64)
        latentChannels = try file.integer("latent_channels", default: latentChannels, in: 1...1024)
        // The decoder's picture is written as RGB.
        outChannels = try file.integer("out_channels", default: outChannels, in: 3...3)
        normNumGroups = try file.integer("norm_num_groups", default: normNumGroups, in: 1...16_384)
        guard blockOutChannels.allSatisfy({ $0 % normNumGroups == 0 }) else {
            throw file.refusal("norm_num_groups", allowed: "a divisor of every number in block_out_channels")
        }
        scalingFactor = try file.number("scaling_factor", default: scalingFactor, in: 1e-6...1e6)
        usePostQuantConv = try file.bool("use_post_quant_conv", default: usePostQuantConv)
        useQuantConv = try file.bool("use_quant_conv", default: useQuantConv)
        midBlockAddAttention = try file.bool("mid_block_add_attention", default: midBlockAddAttention)
        forceUpcast = try file.bool("force_upcast", default: forceUpcast)
        sampleSize = try file.squareSize("sample_size", default: sampleSize, in: 1...65_536)
    }
}
