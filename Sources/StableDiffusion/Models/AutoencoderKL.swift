// The decoder of the autoencoder, after diffusers 0.42.1 models/autoencoders/autoencoder_kl.py and vae.py.

internal import TensorOps

/// Latents to pictures.
struct AutoencoderKL {
    private let configuration: AutoencoderKLConfiguration
    private let postQuantConv: Conv2d?
    private let convIn: Conv2d
    private let midResnets: [ResnetBlock2D]
    private let midAttention: AutoencoderAttention?
    private let upBlocks: [UpDecoderBlock2D]
    private let convNormOut: GroupNorm
    private let convOut: Conv2d

    /// Reads the decoder's weights.
    init(_ loader: WeightLoader, _ configuration: AutoencoderKLConfiguration, on device: TensorDevice) throws {
        self.configuration = configuration
        let channels = [Int](configuration.blockOutChannels.reversed())
        let latent = configuration.latentChannels
        let decoder = loader.at("decoder")
        let groups = configuration.normNumGroups
        postQuantConv =
            configuration.usePostQuantConv
            ? try Conv2d(loader.at("post_quant_conv"), latent, latent, kernelSize: 1, on: device) : nil
        convIn = try Conv2d(decoder.at("conv_in"), latent, channels[0], on: device)
        midResnets = try (0..<2).map {
            try ResnetBlock2D(
                decoder.at("mid_block.resnets.\($0)"),
                channels[0],
                channels[0],
                timeChannels: nil,
                groups: groups,
                epsilon: 1e-6,
                on: device
            )
        }
        midAttention =
            configuration.midBlockAddAttention
            ? try AutoencoderAttention(decoder.at("mid_block.attentions.0"), channels[0], groups: groups, on: device)
            : nil
        upBlocks = try channels.indices.map { index in
            try UpDecoderBlock2D(
                decoder.at("up_blocks.\(index)"),
                channels[max(index - 1, 0)],
                channels[index],
                layers: configuration.layersPerBlock + 1,
                isLast: index == channels.count - 1,
                groups: groups,
                on: device
            )
        }
        let last = channels[channels.count - 1]
        convNormOut = try GroupNorm(decoder.at("conv_norm_out"), last, groups: groups, epsilon: 1e-6, on: device)
        convOut = try Conv2d(decoder.at("conv_out"), last, configuration.outChannels, on: device)
    }

    /// Elements of the largest activation when a picture of a size in pixels is decoded: an upsampled block output.
    func largestActivation(width: Int, height: Int) -> Int {
        let channels = configuration.blockOutChannels
        return channels.indices.map { level in
            let reduction = 1 << max(level - 1, 0)
            return channels[level] * (width / reduction) * (height / reduction)
        }.max() ?? 0
    }

    /// Decodes one picture.
    ///
    /// - Parameters:
    ///   - latents: `[1, H, W, latentChannels]`, float32, as the sampler leaves them.
    ///   - observe: Called with the name and output of every block, for tests.
    /// - Returns: `[1, H * scaleFactor, W * scaleFactor, 3]`, about -1 ... 1.
    func decode(_ latents: Tensor, observe: ((String, Tensor) throws -> Void)? = nil) throws -> Tensor {
        var x = try latents.modelInput(scale: Float(1 / configuration.scalingFactor), copies: 1)
        if let postQuantConv { x = try postQuantConv(x) }
        x = try convIn(x)
        try observe?("conv_in", x)
        x = try midResnets[0](x)
        if let midAttention { x = try midAttention(x) }
        x = try midResnets[1](x)
        try observe?("mid_block", x)
        for (index, block) in upBlocks.enumerated() {
            x = try block(x)
            try observe?("up_blocks.\(index)", x)
        }
        return try convOut(convNormOut(x, function: .silu))
    }
}

/// Self-attention of one head over all pixels.
private struct AutoencoderAttention {
    let groupNorm: GroupNorm
    let queryKeyValue: Linear
    let out: Linear

    init(_ loader: WeightLoader, _ channels: Int, groups: Int, on device: TensorDevice) throws {
        groupNorm = try GroupNorm(loader.at("group_norm"), channels, groups: groups, epsilon: 1e-6, on: device)
        queryKeyValue = try Linear(loader, names: ["to_q", "to_k", "to_v"], channels, channels, on: device)
        out = try Linear(loader.at("to_out.0"), channels, channels, on: device)
    }

    func callAsFunction(_ input: Tensor) throws -> Tensor {
        let channels = input.channels
        let tokens = [input.shape[0], input.shape[1] * input.shape[2], channels]
        let qkv = try queryKeyValue(groupNorm(input).reshaped(tokens), isOperand: true)
        let attended = try attention(
            queries: Columns(qkv),
            keys: Columns(qkv, offset: channels),
            values: Columns(qkv, offset: 2 * channels),
            heads: 1,
            headSize: channels
        )
        return try out(attended, residual: input.reshaped(tokens)).reshaped(input.shape)
    }
}

/// Resnets, then twice the resolution except in the last block.
private struct UpDecoderBlock2D {
    let resnets: [ResnetBlock2D]
    let upsampler: Conv2d?

    init(
        _ loader: WeightLoader,
        _ inChannels: Int,
        _ outChannels: Int,
        layers: Int,
        isLast: Bool,
        groups: Int,
        on device: TensorDevice
    ) throws {
        resnets = try (0..<layers).map {
            try ResnetBlock2D(
                loader.at("resnets.\($0)"),
                $0 == 0 ? inChannels : outChannels,
                outChannels,
                timeChannels: nil,
                groups: groups,
                epsilon: 1e-6,
                on: device
            )
        }
        upsampler =
            isLast ? nil : try Conv2d(loader.at("upsamplers.0.conv"), outChannels, outChannels, on: device)
    }

    func callAsFunction(_ input: Tensor) throws -> Tensor {
        var x = input
        for resnet in resnets { x = try resnet(x) }
        if let upsampler { x = try upsampler(x, upsampledTo: (2 * x.shape[1], 2 * x.shape[2])) }
        return x
    }
}
