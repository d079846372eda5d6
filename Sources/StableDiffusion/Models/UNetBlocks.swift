// The UNet's blocks, after diffusers 0.42.1 models/resnet.py and models/unets/unet_2d_blocks.py.

internal import TensorOps

/// Two convolutions with a shortcut; conditioned on the timestep where there is one.
struct ResnetBlock2D {
    private let norm1: GroupNorm
    private let conv1: Conv2d
    private let timeEmbProj: Linear?
    private let norm2: GroupNorm
    private let conv2: Conv2d
    private let convShortcut: Conv2d?

    /// Reads the weights; `timeChannels` is nil in the autoencoder, whose blocks know no timestep.
    init(
        _ loader: WeightLoader,
        _ inChannels: Int,
        _ outChannels: Int,
        timeChannels: Int?,
        groups: Int,
        epsilon: Double,
        on device: TensorDevice
    ) throws {
        norm1 = try GroupNorm(loader.at("norm1"), inChannels, groups: groups, epsilon: epsilon, on: device)
        conv1 = try Conv2d(loader.at("conv1"), inChannels, outChannels, on: device)
        timeEmbProj = try timeChannels.map {
            try Linear(loader.at("time_emb_proj"), $0, outChannels, on: device)
        }
        norm2 = try GroupNorm(loader.at("norm2"), outChannels, groups: groups, epsilon: epsilon, on: device)
        conv2 = try Conv2d(loader.at("conv2"), outChannels, outChannels, on: device)
        convShortcut =
            inChannels == outChannels
            ? nil : try Conv2d(loader.at("conv_shortcut"), inChannels, outChannels, kernelSize: 1, on: device)
    }

    /// The resnets of a part of the autoencoder, `resnets.0` and on, of which the first changes the number of channels.
    static func ofAutoencoder(
        _ loader: WeightLoader,
        _ inChannels: Int,
        _ outChannels: Int,
        count: Int,
        groups: Int,
        on device: TensorDevice
    ) throws -> [ResnetBlock2D] {
        try (0..<count).map {
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
    }

    /// `[N, H, W, inChannels]` to `[N, H, W, outChannels]`.
    ///
    /// Every tensor is released after its last use: at the decoder's full resolution each is a good part of the memory.
    /// - Parameter timeEmbedding: `[N, timeChannels]`, SiLU already applied, as every block begins with it.
    func callAsFunction(_ input: consuming Tensor, timeEmbedding: Tensor? = nil) throws -> Tensor {
        let channelBias: Tensor? =
            if let timeEmbProj, let timeEmbedding { try timeEmbProj(timeEmbedding) } else { nil }
        let x = try conv1(norm1(input, function: .silu), channelBias: channelBias)
        let normalized = try norm2(consume x, function: .silu)
        guard let convShortcut else { return try conv2(normalized, residual: input) }
        let shortcut = try convShortcut(input)
        _ = consume input
        return try conv2(normalized, residual: shortcut)
    }

    /// The same of a picture in bands, which are used up; for blocks that know no timestep.
    ///
    /// The output grows as input and intermediate result are released, so that the peak is the sum of these two.
    func callAsFunction(_ input: RowBands) throws -> RowBands {
        let hidden = RowBands(height: input.height, bandRows: input.bandRows)
        let output = RowBands(height: input.height, bandRows: input.bandRows)
        let first = try norm1.normalization(of: input, function: .silu)
        for index in input.indices {
            try hidden.append(conv1(input.window(index, first)), firstRow: input.rowsAbove(index))
        }
        let second = try norm2.normalization(of: hidden, function: .silu)
        for index in input.indices {
            // A residual is added pixel by pixel, so that it needs no neighbours.
            let band = try input.window(index, isExact: false)
            let shortcut = try convShortcut?(band) ?? band
            try output.append(
                conv2(hidden.window(index, second), residual: shortcut),
                firstRow: input.rowsAbove(index)
            )
            input.release(index)
            hidden.release(index - 1)
        }
        return output
    }
}

/// What the blocks of one UNet have in common while they are loaded.
struct UNetBlockLoading {
    let configuration: UNet2DConditionModelConfiguration
    let crossAttentions: CrossAttentionList
    let device: TensorDevice

    func resnet(_ loader: WeightLoader, _ inChannels: Int, _ outChannels: Int) throws -> ResnetBlock2D {
        try ResnetBlock2D(
            loader,
            inChannels,
            outChannels,
            timeChannels: configuration.timeEmbeddingDim,
            groups: configuration.normNumGroups,
            epsilon: configuration.normEps,
            on: device
        )
    }

    func transformer(_ loader: WeightLoader, level: Int) throws -> Transformer2DModel {
        try Transformer2DModel(
            loader,
            channels: configuration.blockOutChannels[level],
            heads: configuration.attentionHeads[level],
            layers: configuration.transformerLayersPerBlock[level],
            configuration,
            crossAttentions,
            on: device
        )
    }
}

/// `DownBlock2D` and `CrossAttnDownBlock2D`: resnets, transformers after them in the latter, and a stride of 2 at the end.
struct DownBlock2D {
    private let resnets: [ResnetBlock2D]
    private let attentions: [Transformer2DModel]
    private let downsampler: Conv2d?

    /// Reads the block of a level; the last one does not reduce the resolution.
    init(_ loader: WeightLoader, level: Int, _ loading: UNetBlockLoading) throws {
        let configuration = loading.configuration
        let channels = configuration.blockOutChannels
        let hasAttention = configuration.downBlockTypes[level] == .crossAttnDownBlock2D
        let count = configuration.layersPerBlock[level]
        resnets = try (0..<count).map { index in
            let inChannels = index > 0 ? channels[level] : channels[max(level - 1, 0)]
            return try loading.resnet(loader.at("resnets.\(index)"), inChannels, channels[level])
        }
        attentions =
            hasAttention
            ? try (0..<count).map { try loading.transformer(loader.at("attentions.\($0)"), level: level) } : []
        downsampler =
            level == configuration.levels - 1
            ? nil
            : try Conv2d(loader.at("downsamplers.0.conv"), channels[level], channels[level], on: loading.device)
    }

    /// Appends the output of every layer to `skips` and returns the last.
    func callAsFunction(
        _ input: Tensor,
        timeEmbedding: Tensor,
        _ context: CrossAttentionContext,
        skips: inout [Tensor]
    ) throws -> Tensor {
        var x = input
        for (index, resnet) in resnets.enumerated() {
            x = try resnet(consume x, timeEmbedding: timeEmbedding)
            if !attentions.isEmpty { x = try attentions[index](consume x, context) }
            skips.append(x)
        }
        if let downsampler {
            x = try downsampler(x, stride: 2)
            skips.append(x)
        }
        return x
    }
}

/// `UNetMidBlock2DCrossAttn`: a transformer between two resnets.
struct UNetMidBlock2DCrossAttn {
    private let resnets: [ResnetBlock2D]
    private let attention: Transformer2DModel

    /// Reads the block.
    init(_ loader: WeightLoader, _ loading: UNetBlockLoading) throws {
        let level = loading.configuration.levels - 1
        let channels = loading.configuration.blockOutChannels[level]
        resnets = try (0..<2).map { try loading.resnet(loader.at("resnets.\($0)"), channels, channels) }
        attention = try loading.transformer(loader.at("attentions.0"), level: level)
    }

    /// `[N, H, W, C]` to the same shape.
    func callAsFunction(_ input: consuming Tensor, timeEmbedding: Tensor, _ context: CrossAttentionContext) throws
        -> Tensor
    {
        let x = try attention(resnets[0](input, timeEmbedding: timeEmbedding), context)
        return try resnets[1](consume x, timeEmbedding: timeEmbedding)
    }
}

/// `UpBlock2D` and `CrossAttnUpBlock2D`: each resnet takes a skip connection besides its input; then twice the resolution.
struct UpBlock2D {
    private let resnets: [ResnetBlock2D]
    private let attentions: [Transformer2DModel]
    private let upsampler: Conv2d?

    /// Reads up block `index`, which works at level `levels - 1 - index`.
    init(_ loader: WeightLoader, index: Int, _ loading: UNetBlockLoading) throws {
        let configuration = loading.configuration
        let channels = configuration.blockOutChannels
        let level = configuration.levels - 1 - index
        let count = configuration.layersPerBlock[level] + 1
        let previous = channels[min(level + 1, configuration.levels - 1)]
        let lower = channels[max(level - 1, 0)]
        resnets = try (0..<count).map { layer in
            let inChannels = layer == 0 ? previous : channels[level]
            let skipChannels = layer == count - 1 ? lower : channels[level]
            return try loading.resnet(loader.at("resnets.\(layer)"), inChannels + skipChannels, channels[level])
        }
        attentions =
            configuration.upBlockTypes[index] == .crossAttnUpBlock2D
            ? try (0..<count).map { try loading.transformer(loader.at("attentions.\($0)"), level: level) } : []
        upsampler =
            level == 0
            ? nil : try Conv2d(loader.at("upsamplers.0.conv"), channels[level], channels[level], on: loading.device)
    }

    /// Takes its skip connections from the end of `skips`.
    ///
    /// The result has the size of the next skip connection, which is not always twice the input's: odd sizes were rounded up on the way down.
    func callAsFunction(
        _ input: consuming Tensor,
        timeEmbedding: Tensor,
        _ context: CrossAttentionContext,
        skips: inout [Tensor]
    ) throws -> Tensor {
        var x = input
        for (index, resnet) in resnets.enumerated() {
            x = try (consume x).concatenated(with: skips.removeLast())
            x = try resnet(consume x, timeEmbedding: timeEmbedding)
            if !attentions.isEmpty { x = try attentions[index](consume x, context) }
        }
        if let upsampler, let next = skips.last {
            x = try upsampler(consume x, upsampledTo: (next.shape[1], next.shape[2]))
        }
        return x
    }
}
