// The autoencoder's encoder, after diffusers 0.42.1 models/autoencoders/vae.py; for pictures that pictures are made from.

internal import TensorOps

/// Pictures to the distribution of their latents.
struct AutoencoderKLEncoder {
    private let configuration: AutoencoderKLConfiguration
    private let device: TensorDevice
    private let convIn: Conv2d
    private let downBlocks: [DownEncoderBlock2D]
    private let midBlock: AutoencoderMidBlock
    private let convNormOut: GroupNorm
    private let convOut: Conv2d
    private let quantConv: Conv2d?

    /// Reads the encoder's weights.
    init(_ loader: WeightLoader, _ configuration: AutoencoderKLConfiguration, on device: TensorDevice) throws {
        self.configuration = configuration
        self.device = device
        let encoder = loader.at("encoder")
        let channels = configuration.blockOutChannels
        let last = channels[channels.count - 1]
        let moments = 2 * configuration.latentChannels
        convIn = try Conv2d(encoder.at("conv_in"), configuration.outChannels, channels[0], on: device)
        downBlocks = try channels.indices.map { index in
            try DownEncoderBlock2D(
                encoder.at("down_blocks.\(index)"),
                channels[max(index - 1, 0)],
                channels[index],
                layers: configuration.layersPerBlock,
                isLast: index == channels.count - 1,
                groups: configuration.normNumGroups,
                on: device
            )
        }
        midBlock = try AutoencoderMidBlock(encoder.at("mid_block"), last, configuration, on: device)
        convNormOut = try GroupNorm(
            encoder.at("conv_norm_out"),
            last,
            groups: configuration.normNumGroups,
            epsilon: 1e-6,
            on: device
        )
        convOut = try Conv2d(encoder.at("conv_out"), last, moments, on: device)
        quantConv =
            configuration.useQuantConv
            ? try Conv2d(loader.at("quant_conv"), moments, moments, kernelSize: 1, on: device) : nil
    }

    /// Encodes one picture.
    ///
    /// - Parameters:
    ///   - picture: `[1, H, W, 3]`, -1 ... 1, any storage; H and W multiples of `scaleFactor`.
    ///   - observe: Called with the name and output of every block, for tests.
    /// - Returns: `[1, H / scaleFactor, W / scaleFactor, 2 * latentChannels]`: means, then logarithms of variances, not yet times
    ///   `scalingFactor`.
    func callAsFunction(
        _ picture: consuming Tensor,
        observe: ((String, Tensor) throws -> Void)? = nil
    ) throws -> Tensor {
        var x = try convIn(picture.on(device).converted(to: device.activationType))
        try observe?("conv_in", x)
        for (index, block) in downBlocks.enumerated() {
            x = try block(consume x)
            try observe?("down_blocks.\(index)", x)
        }
        x = try midBlock(consume x)
        try observe?("mid_block", x)
        x = try convOut(convNormOut(consume x, function: .silu))
        if let quantConv { x = try quantConv(consume x) }
        return x
    }
}

/// Resnets, then half the resolution except after the last block.
private struct DownEncoderBlock2D {
    let resnets: [ResnetBlock2D]
    let downsampler: Conv2d?

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
        downsampler =
            isLast ? nil : try Conv2d(loader.at("downsamplers.0.conv"), outChannels, outChannels, on: device)
    }

    func callAsFunction(_ input: consuming Tensor) throws -> Tensor {
        var x = input
        for resnet in resnets { x = try resnet(consume x) }
        guard let downsampler else { return x }
        return try downsampler(x, stride: 2, padding: .after)
    }
}
