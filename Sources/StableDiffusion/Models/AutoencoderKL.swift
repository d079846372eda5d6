// The autoencoder's decoder, after diffusers 0.42.1 models/autoencoders/autoencoder_kl.py and vae.py. `AutoencoderKLEncoder.swift` has the other half.

internal import TensorOps

/// How a picture is decoded in bands of rows: see `RowBands`.
struct DecoderBands: Sendable, Equatable {
    /// The first up block whose input is kept in bands; those before it, at lower resolution, are computed on the whole.
    var firstBlock: Int
    /// Rows of latents in a band.
    var rows: Int

    /// 8 rows of latents are 64 of the picture: two more for the neighbours cost 3 %.
    static let usualRows = 8
}

/// Latents to pictures.
struct AutoencoderKL {
    private let configuration: AutoencoderKLConfiguration
    private let device: TensorDevice
    private let postQuantConv: Conv2d?
    private let convIn: Conv2d
    private let midBlock: AutoencoderMidBlock
    private let upBlocks: [UpDecoderBlock2D]
    private let convNormOut: GroupNorm
    private let convOut: Conv2d

    /// Reads the decoder's weights.
    init(_ loader: WeightLoader, _ configuration: AutoencoderKLConfiguration, on device: TensorDevice) throws {
        self.configuration = configuration
        self.device = device
        let channels = [Int](configuration.blockOutChannels.reversed())
        let latent = configuration.latentChannels
        let decoder = loader.at("decoder")
        let groups = configuration.normNumGroups
        postQuantConv =
            configuration.usePostQuantConv
            ? try Conv2d(loader.at("post_quant_conv"), latent, latent, kernelSize: 1, on: device) : nil
        convIn = try Conv2d(decoder.at("conv_in"), latent, channels[0], on: device)
        midBlock = try AutoencoderMidBlock(decoder.at("mid_block"), channels[0], configuration, on: device)
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

    /// Ways to decode in bands, in the order of the memory they take; what they have more of is rows computed twice.
    var bandings: [DecoderBands] {
        let fromLast = upBlocks.indices.reversed().map { DecoderBands(firstBlock: $0, rows: DecoderBands.usualRows) }
        return fromLast + [4, 2, 1].map { DecoderBands(firstBlock: 0, rows: $0) }
    }

    /// Decodes one picture.
    ///
    /// - Parameters:
    ///   - latents: `[1, H, W, latentChannels]`, float32, as the sampler leaves them.
    ///   - bands: How to decode in bands, which takes less memory; nil on the whole.
    ///   - observe: Called with the name and output of every block computed on the whole, for tests.
    /// - Returns: `[1, H * scaleFactor, W * scaleFactor, 3]`, about -1 ... 1.
    func decode(
        _ latents: Tensor,
        bands: DecoderBands? = nil,
        observe: ((String, Tensor) throws -> Void)? = nil
    ) throws -> Tensor {
        if let bands {
            return try decode(lowResolution(latents, before: bands.firstBlock, observe: observe), bands)
        }
        var x = try middle(latents, observe: observe)
        for (index, block) in upBlocks.enumerated() {
            x = try block.upsampled(block(consume x))
            try observe?("up_blocks.\(index)", x)
        }
        return try convOut(convNormOut(consume x, function: .silu))
    }

    /// What stands before the up blocks, at the resolution of the latents.
    private func middle(_ latents: Tensor, observe: ((String, Tensor) throws -> Void)?) throws -> Tensor {
        var x = try latents.on(device).modelInput(scale: Float(1 / configuration.scalingFactor), copies: 1)
        if let postQuantConv { x = try postQuantConv(consume x) }
        x = try convIn(consume x)
        try observe?("conv_in", x)
        x = try midBlock(consume x)
        try observe?("mid_block", x)
        return x
    }

    /// Everything before a block but the upsampling that its input comes of.
    private func lowResolution(
        _ latents: Tensor,
        before firstBlock: Int,
        observe: ((String, Tensor) throws -> Void)?
    ) throws -> Tensor {
        var x = try middle(latents, observe: observe)
        for index in 0..<firstBlock {
            x = try upBlocks[index](consume x)
            if index + 1 == firstBlock { break }
            x = try upBlocks[index].upsampled(consume x)
            try observe?("up_blocks.\(index)", x)
        }
        return x
    }

    /// The rest, in bands.
    private func decode(_ input: consuming Tensor, _ bands: DecoderBands) throws -> Tensor {
        let first = bands.firstBlock
        var x = RowBands(input, bandRows: bands.rows << max(first - 1, 0))
        if first > 0 { x = try upBlocks[first - 1].upsampled(x) }
        for block in upBlocks[first...] { x = try block.upsampled(block(x)) }
        let normalization = try convNormOut.normalization(of: x, function: .silu)
        let picture = RowBands(height: x.height, bandRows: x.bandRows)
        for index in x.indices {
            try picture.append(convOut(x.window(index, normalization)), firstRow: x.rowsAbove(index))
            x.release(index - 1)
        }
        return try picture.joined()
    }
}

/// `UNetMidBlock2D`: two resnets, with attention between them.
struct AutoencoderMidBlock {
    private let resnets: [ResnetBlock2D]
    private let attention: AutoencoderAttention?

    /// Reads the block of the encoder or the decoder.
    init(
        _ loader: WeightLoader,
        _ channels: Int,
        _ configuration: AutoencoderKLConfiguration,
        on device: TensorDevice
    ) throws {
        let groups = configuration.normNumGroups
        resnets = try ResnetBlock2D.ofAutoencoder(loader, channels, channels, count: 2, groups: groups, on: device)
        attention =
            configuration.midBlockAddAttention
            ? try AutoencoderAttention(loader.at("attentions.0"), channels, groups: groups, on: device) : nil
    }

    /// `[N, H, W, channels]` to the same shape.
    func callAsFunction(_ input: consuming Tensor) throws -> Tensor {
        var x = try resnets[0](input)
        if let attention { x = try attention(consume x) }
        return try resnets[1](consume x)
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

    func callAsFunction(_ input: consuming Tensor) throws -> Tensor {
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

/// Resnets, then twice the resolution except after the last block.
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
        resnets = try ResnetBlock2D.ofAutoencoder(
            loader,
            inChannels,
            outChannels,
            count: layers,
            groups: groups,
            on: device
        )
        upsampler =
            isLast ? nil : try Conv2d(loader.at("upsamplers.0.conv"), outChannels, outChannels, on: device)
    }

    /// The resnets.
    func callAsFunction(_ input: consuming Tensor) throws -> Tensor {
        var x = input
        for resnet in resnets { x = try resnet(consume x) }
        return x
    }

    /// The resnets on a picture in bands, which are used up.
    func callAsFunction(_ input: RowBands) throws -> RowBands {
        try resnets.reduce(input) { try $1($0) }
    }

    /// Twice the resolution, except after the last block.
    func upsampled(_ x: consuming Tensor) throws -> Tensor {
        guard let upsampler else { return x }
        return try upsampler(x, upsampledTo: (2 * x.shape[1], 2 * x.shape[2]))
    }

    /// The same of a picture in bands, which are used up.
    func upsampled(_ x: RowBands) throws -> RowBands {
        guard let upsampler else { return x }
        let y = RowBands(height: 2 * x.height, bandRows: 2 * x.bandRows)
        for index in x.indices {
            let window = try x.window(index)
            try y.append(
                upsampler(window, upsampledTo: (2 * window.shape[1], 2 * window.shape[2])),
                firstRow: 2 * x.rowsAbove(index)
            )
            x.release(index - 1)
        }
        // Nobody else has a use for the last band.
        if let last = x.indices.last { x.release(last) }
        return y
    }
}
