// The UNet's transformers, after diffusers 0.42.1 models/transformers/transformer_2d.py and models/attention.py.

internal import TensorOps

/// Keys and values of every cross-attention for one prompt: they do not depend on the latents, so they are computed once.
struct CrossAttentionContext {
    /// `[B, T, 2 * channels]` a cross-attention, keys then values, in the order the blocks were loaded.
    fileprivate var keyValues: [Tensor]
}

/// Collects the cross-attentions of a model while it is loaded and gives each its place in the context.
final class CrossAttentionList {
    private var projections: [Linear] = []

    /// Adds a projection and returns its place.
    func append(_ projection: Linear) -> Int {
        projections.append(projection)
        return projections.count - 1
    }

    /// Computes the context of encoded prompts `[B, T, crossAttentionDim]`.
    func context(of encoderHiddenStates: Tensor) throws -> CrossAttentionContext {
        CrossAttentionContext(keyValues: try projections.map { try $0(encoderHiddenStates, isOperand: true) })
    }
}

/// A transformer over the pixels of a feature map, with the prompt as context.
struct Transformer2DModel {
    private let norm: GroupNorm
    private let projIn: Linear
    private let blocks: [BasicTransformerBlock]
    private let projOut: Linear

    /// Reads the weights.
    ///
    /// 1x1 convolutions and linear projections are the same operator on channels-last memory.
    init(
        _ loader: WeightLoader,
        channels: Int,
        heads: Int,
        layers: Int,
        _ configuration: UNet2DConditionModelConfiguration,
        _ crossAttentions: CrossAttentionList,
        on device: TensorDevice
    ) throws {
        norm = try GroupNorm(
            loader.at("norm"),
            channels,
            groups: configuration.normNumGroups,
            epsilon: 1e-6,
            on: device
        )
        projIn = try Linear(loader.at("proj_in"), channels, channels, on: device)
        blocks = try (0..<layers).map {
            try BasicTransformerBlock(
                loader.at("transformer_blocks.\($0)"),
                channels: channels,
                heads: heads,
                contextChannels: configuration.crossAttentionDim,
                crossAttentions,
                on: device
            )
        }
        projOut = try Linear(loader.at("proj_out"), channels, channels, on: device)
    }

    /// `[N, H, W, C]` to the same shape.
    func callAsFunction(_ input: consuming Tensor, _ context: CrossAttentionContext) throws -> Tensor {
        let tokens = [input.shape[0], input.shape[1] * input.shape[2], input.channels]
        var x = try projIn(norm(input).reshaped(tokens))
        for block in blocks { x = try block(consume x, context) }
        return try projOut(consume x, residual: input.reshaped(tokens)).reshaped(input.shape)
    }
}

/// Self-attention, cross-attention and a gated feed-forward, each on the normalised input and added to it.
private struct BasicTransformerBlock {
    let norm1: LayerNorm
    let queryKeyValue: Linear
    let selfOut: Linear
    let norm2: LayerNorm
    let query: Linear
    let contextIndex: Int
    let crossOut: Linear
    let norm3: LayerNorm
    let gatedProjection: Linear
    let feedForwardOut: Linear
    let heads: Int
    let headSize: Int

    init(
        _ loader: WeightLoader,
        channels: Int,
        heads: Int,
        contextChannels: Int,
        _ crossAttentions: CrossAttentionList,
        on device: TensorDevice
    ) throws {
        self.heads = heads
        headSize = channels / heads
        norm1 = try LayerNorm(loader.at("norm1"), channels, on: device)
        queryKeyValue = try Linear(
            loader.at("attn1"),
            names: ["to_q", "to_k", "to_v"],
            channels,
            channels,
            hasBias: false,
            on: device
        )
        selfOut = try Linear(loader.at("attn1.to_out.0"), channels, channels, on: device)
        norm2 = try LayerNorm(loader.at("norm2"), channels, on: device)
        query = try Linear(loader.at("attn2.to_q"), channels, channels, hasBias: false, on: device)
        contextIndex = crossAttentions.append(
            try Linear(
                loader.at("attn2"),
                names: ["to_k", "to_v"],
                contextChannels,
                channels,
                hasBias: false,
                on: device
            )
        )
        crossOut = try Linear(loader.at("attn2.to_out.0"), channels, channels, on: device)
        norm3 = try LayerNorm(loader.at("norm3"), channels, on: device)
        gatedProjection = try Linear(loader.at("ff.net.0.proj"), channels, 8 * channels, isGEGLU: true, on: device)
        feedForwardOut = try Linear(loader.at("ff.net.2"), 4 * channels, channels, on: device)
    }

    func callAsFunction(_ input: consuming Tensor, _ context: CrossAttentionContext) throws -> Tensor {
        let channels = heads * headSize
        var x = try selfOut(selfAttention(norm1(input)), residual: input)
        _ = consume input
        let keyValue = context.keyValues[contextIndex]
        x = try crossOut(
            attention(
                queries: Columns(query(norm2(x), isOperand: true)),
                keys: Columns(keyValue),
                values: Columns(keyValue, offset: channels),
                heads: heads,
                headSize: headSize
            ),
            residual: x
        )
        return try feedForwardOut(gatedProjection(norm3(x), isOperand: true), residual: x)
    }

    private func selfAttention(_ x: consuming Tensor) throws -> Tensor {
        let channels = heads * headSize
        let qkv = try queryKeyValue(consume x, isOperand: true)
        return try attention(
            queries: Columns(qkv),
            keys: Columns(qkv, offset: channels),
            values: Columns(qkv, offset: 2 * channels),
            heads: heads,
            headSize: headSize
        )
    }
}
