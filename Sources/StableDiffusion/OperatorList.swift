// Which operators the models call, by shapes alone: what UNet2DConditionModel, AutoencoderKL and CLIPTextModel do, without weights and without
// a device. `OperatorListTests` holds it against the weights of a checkpoint.

internal import TensorOps

/// A feature map `[batch, height, width, channels]`.
private struct FeatureMap {
    let batch: Int
    var height: Int
    var width: Int
    var channels: Int

    var pixels: Int { height * width }
    var rows: Int { batch * height * width }

    func with(channels: Int) -> FeatureMap {
        var map = self
        map.channels = channels
        return map
    }

    /// The size after a convolution of stride 2.
    var halved: FeatureMap {
        var map = self
        (map.height, map.width) = ((height + 1) / 2, (width + 1) / 2)
        return map
    }
}

/// The calls of one model, in order.
private struct OperatorList {
    let groups: Int
    private(set) var calls: [OperatorCall] = []

    init(groups: Int) { self.groups = groups }

    mutating func add(_ call: OperatorCall) { calls.append(call) }

    mutating func convolution(
        _ map: FeatureMap,
        to outChannels: Int,
        kernelSize: Int = 3,
        stride: Int = 1,
        isUpsampled: Bool = false,
        hasChannelBias: Bool = false,
        hasResidual: Bool = false,
        source: StorageRole = .activation
    ) {
        add(
            .convolution(
                batch: map.batch,
                height: map.height,
                width: map.width,
                inChannels: map.channels,
                outChannels: outChannels,
                kernelSize: kernelSize,
                stride: stride,
                isUpsampled: isUpsampled,
                hasChannelBias: hasChannelBias,
                hasResidual: hasResidual,
                source: source
            )
        )
    }

    mutating func groupNorm(_ map: FeatureMap, function: ActivationFunction = .none) {
        add(
            .groupNorm(
                batch: map.batch,
                pixels: map.pixels,
                channels: map.channels,
                groups: groups,
                function: function
            )
        )
    }

    /// `ResnetBlock2D`.
    mutating func resnet(_ map: FeatureMap, to outChannels: Int, timeChannels: Int?) -> FeatureMap {
        let output = map.with(channels: outChannels)
        if let timeChannels { add(.linear(rows: map.batch, inChannels: timeChannels, outChannels: outChannels)) }
        groupNorm(map, function: .silu)
        convolution(map, to: outChannels, hasChannelBias: timeChannels != nil, source: .operand)
        if map.channels != outChannels { convolution(map, to: outChannels, kernelSize: 1) }
        groupNorm(output, function: .silu)
        convolution(output, to: outChannels, hasResidual: true, source: .operand)
        return output
    }

    /// `Transformer2DModel`; the cross-attentions' keys and values are not among its calls.
    mutating func transformer(_ map: FeatureMap, heads: Int, layers: Int, contextTokens: Int) {
        let (rows, channels) = (map.rows, map.channels)
        groupNorm(map)
        add(.linear(rows: rows, inChannels: channels, outChannels: channels))
        for _ in 0..<layers {
            add(.layerNorm(rows: rows, channels: channels))
            add(.linear(rows: rows, inChannels: channels, outChannels: 3 * channels, result: .operand))
            attention(map, keys: map.pixels, heads: heads, isSelf: true)
            add(.linear(rows: rows, inChannels: channels, outChannels: channels, hasResidual: true))
            add(.layerNorm(rows: rows, channels: channels))
            add(.linear(rows: rows, inChannels: channels, outChannels: channels, result: .operand))
            attention(map, keys: contextTokens, heads: heads, isSelf: false)
            add(.linear(rows: rows, inChannels: channels, outChannels: channels, hasResidual: true))
            add(.layerNorm(rows: rows, channels: channels))
            add(
                .linear(rows: rows, inChannels: channels, outChannels: 4 * channels, isGEGLU: true, result: .operand)
            )
            add(.linear(rows: rows, inChannels: 4 * channels, outChannels: channels, hasResidual: true))
        }
        add(
            .linear(rows: rows, inChannels: channels, outChannels: channels, hasResidual: true, source: .activation)
        )
    }

    mutating func attention(_ map: FeatureMap, keys: Int, heads: Int, isSelf: Bool) {
        add(
            .attention(
                batch: map.batch,
                queries: map.pixels,
                keys: keys,
                heads: heads,
                headSize: map.channels / heads,
                isSelf: isSelf
            )
        )
    }
}

extension UNet2DConditionModelConfiguration {
    /// The UNet of Stable Diffusion 1.5.
    static var stableDiffusion15: UNet2DConditionModelConfiguration {
        var configuration = UNet2DConditionModelConfiguration()
        configuration.crossAttentionDim = 768
        return configuration
    }

    /// The calls of one step: the model on latents of a size, and the passes before and after it.
    ///
    /// - Parameter batch: 2 with guidance.
    func stepCalls(batch: Int, height: Int, width: Int, contextTokens: Int) -> [OperatorCall] {
        var list = OperatorList(groups: normNumGroups)
        let latents = FeatureMap(batch: batch, height: height, width: width, channels: inChannels)
        list.add(.modelInput(count: latents.pixels * inChannels, copies: batch))
        if let timeCondProjDim {
            list.add(
                .linear(
                    rows: batch,
                    inChannels: timeCondProjDim,
                    outChannels: blockOutChannels[0],
                    hasResidual: true,
                    source: .activation
                )
            )
        }
        for (input, output) in [(blockOutChannels[0], timeEmbeddingDim), (timeEmbeddingDim, timeEmbeddingDim)] {
            // The first of the two reads the timesteps as the host wrote them.
            let source: StorageRole = input == output ? .operand : .activation
            list.add(
                .linear(
                    rows: batch,
                    inChannels: input,
                    outChannels: output,
                    function: .silu,
                    source: source,
                    result: .operand
                )
            )
        }
        func transformer(_ map: FeatureMap, level: Int) {
            list.transformer(
                map,
                heads: attentionHeads[level],
                layers: transformerLayersPerBlock[level],
                contextTokens: contextTokens
            )
        }

        list.convolution(latents, to: blockOutChannels[0])
        var map = latents.with(channels: blockOutChannels[0])
        var skips = [map]
        for level in 0..<levels {
            for _ in 0..<layersPerBlock[level] {
                map = list.resnet(map, to: blockOutChannels[level], timeChannels: timeEmbeddingDim)
                if downBlockTypes[level] == .crossAttnDownBlock2D { transformer(map, level: level) }
                skips.append(map)
            }
            if level < levels - 1 {
                list.convolution(map, to: map.channels, stride: 2)
                map = map.halved
                skips.append(map)
            }
        }
        if midBlockType != nil {
            map = list.resnet(map, to: map.channels, timeChannels: timeEmbeddingDim)
            transformer(map, level: levels - 1)
            map = list.resnet(map, to: map.channels, timeChannels: timeEmbeddingDim)
        }
        for level in (0..<levels).reversed() {
            for _ in 0...layersPerBlock[level] {
                let skip = skips.removeLast()
                list.add(.concatenation(rows: map.rows, channels: map.channels, otherChannels: skip.channels))
                map = list.resnet(
                    map.with(channels: map.channels + skip.channels),
                    to: blockOutChannels[level],
                    timeChannels: timeEmbeddingDim
                )
                if upBlockTypes[levels - 1 - level] == .crossAttnUpBlock2D { transformer(map, level: level) }
            }
            if level > 0, let next = skips.last {
                (map.height, map.width) = (next.height, next.width)
                list.convolution(map, to: map.channels, isUpsampled: true)
            }
        }
        list.groupNorm(map, function: .silu)
        list.convolution(map, to: outChannels, source: .operand)
        // With the sampler whose update is simplest.
        list.add(.guidance(count: latents.pixels * outChannels))
        list.add(.weightedSum(count: latents.pixels * outChannels, terms: 2))
        return list.calls
    }

    /// The calls that make the keys and values of all cross-attentions of a prompt.
    func contextCalls(batch: Int, contextTokens: Int) -> [OperatorCall] {
        var levelsWithAttention: [Int] = []
        for level in 0..<levels {
            if downBlockTypes[level] == .crossAttnDownBlock2D {
                levelsWithAttention += Array(repeating: level, count: layersPerBlock[level])
            }
            if upBlockTypes[levels - 1 - level] == .crossAttnUpBlock2D {
                levelsWithAttention += Array(repeating: level, count: layersPerBlock[level] + 1)
            }
        }
        if midBlockType != nil { levelsWithAttention.append(levels - 1) }
        return levelsWithAttention.flatMap { level in
            Array(
                repeating: OperatorCall.linear(
                    rows: batch * contextTokens,
                    inChannels: crossAttentionDim,
                    outChannels: 2 * blockOutChannels[level],
                    source: .activation,
                    result: .operand
                ),
                count: transformerLayersPerBlock[level]
            )
        }
    }
}

extension AutoencoderKLConfiguration {
    /// The autoencoder of Stable Diffusion 1.5.
    static var stableDiffusion15: AutoencoderKLConfiguration {
        var configuration = AutoencoderKLConfiguration()
        configuration.blockOutChannels = [128, 256, 512, 512]
        configuration.layersPerBlock = 2
        configuration.sampleSize = 512
        return configuration
    }

    /// The calls that decode latents of a size to bytes.
    func decodeCalls(height: Int, width: Int) -> [OperatorCall] {
        var list = OperatorList(groups: normNumGroups)
        let channels = [Int](blockOutChannels.reversed())
        let latents = FeatureMap(batch: 1, height: height, width: width, channels: latentChannels)
        list.add(.modelInput(count: latents.pixels * latentChannels, copies: 1))
        if usePostQuantConv { list.convolution(latents, to: latentChannels, kernelSize: 1) }
        list.convolution(latents, to: channels[0])
        var map = latents.with(channels: channels[0])
        map = list.resnet(map, to: channels[0], timeChannels: nil)
        if midBlockAddAttention {
            list.groupNorm(map)
            list.add(.linear(rows: map.rows, inChannels: channels[0], outChannels: 3 * channels[0], result: .operand))
            list.attention(map, keys: map.pixels, heads: 1, isSelf: true)
            list.add(.linear(rows: map.rows, inChannels: channels[0], outChannels: channels[0], hasResidual: true))
        }
        map = list.resnet(map, to: channels[0], timeChannels: nil)
        for (index, outChannels) in channels.enumerated() {
            for _ in 0...layersPerBlock { map = list.resnet(map, to: outChannels, timeChannels: nil) }
            if index < channels.count - 1 {
                (map.height, map.width) = (2 * map.height, 2 * map.width)
                list.convolution(map, to: outChannels, isUpsampled: true)
            }
        }
        list.groupNorm(map, function: .silu)
        list.convolution(map, to: outChannels, source: .operand)
        list.add(.rgb8(height: map.height, width: map.width))
        return list.calls
    }
}

extension CLIPTextModelConfiguration {
    /// The text encoder of Stable Diffusion 1.5.
    static var stableDiffusion15: CLIPTextModelConfiguration {
        var configuration = CLIPTextModelConfiguration()
        configuration.hiddenSize = 768
        configuration.intermediateSize = 3072
        configuration.heads = 12
        return configuration
    }

    /// The calls that encode prompts.
    ///
    /// - Parameter batch: Prompts; 2 with guidance.
    func encodeCalls(batch: Int) -> [OperatorCall] {
        let tokens = maxPositionEmbeddings
        let rows = batch * tokens
        let function: ActivationFunction = hiddenAct == .gelu ? .gelu : .quickGELU
        let layer: [OperatorCall] = [
            .layerNorm(rows: rows, channels: hiddenSize),
            .linear(rows: rows, inChannels: hiddenSize, outChannels: 3 * hiddenSize, result: .operand),
            .attention(
                batch: batch,
                queries: tokens,
                keys: tokens,
                heads: heads,
                headSize: hiddenSize / heads,
                isSelf: true,
                isCausal: true
            ),
            .linear(rows: rows, inChannels: hiddenSize, outChannels: hiddenSize, hasResidual: true),
            .layerNorm(rows: rows, channels: hiddenSize),
            .linear(
                rows: rows,
                inChannels: hiddenSize,
                outChannels: intermediateSize,
                function: function,
                result: .operand
            ),
            .linear(rows: rows, inChannels: intermediateSize, outChannels: hiddenSize, hasResidual: true),
        ]
        return [.embedding(batch: batch, tokens: tokens, channels: hiddenSize, vocabulary: vocabSize)]
            + (0..<layers).flatMap { _ in layer } + [.layerNorm(rows: rows, channels: hiddenSize)]
    }
}
