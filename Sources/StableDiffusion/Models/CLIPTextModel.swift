// The text encoders of Stable Diffusion (Radford et al. 2021), after transformers 5.23 models/clip/modeling_clip.py.

internal import TensorOps

/// What an encoder makes of a batch of B prompts of T tokens.
struct EncodedPrompts {
    /// `[B, T, hiddenSize]`.
    var hiddenStates: Tensor
    /// `[B, projectionDim]`, the projected state at the end of the text; nil where the encoder has no projection.
    var pooled: Tensor?
}

/// Token ids to the hidden states that condition the UNet (`CLIPTextModel`, `CLIPTextModelWithProjection`).
struct CLIPTextModel {
    /// Which hidden state conditions the UNet.
    struct HiddenState: Sendable, Equatable {
        /// Layers at the end whose work is left out.
        var skippedLayers: Int
        /// Whether the final layer norm is applied.
        var isNormalized: Bool

        /// The output of the whole encoder: Stable Diffusion 1.x and 2.x.
        static let last = HiddenState(skippedLayers: 0, isNormalized: true)
        /// The output of the last layer but one, as it is: Stable Diffusion XL.
        static let penultimate = HiddenState(skippedLayers: 1, isNormalized: false)
    }

    private let configuration: CLIPTextModelConfiguration
    private let device: TensorDevice
    private let embeddings: EmbeddingWeights
    /// `[T, hiddenSize]`, for vectors that are not in the table.
    private let positions: [Float]
    private let layers: [CLIPEncoderLayer]
    private let finalLayerNorm: LayerNorm
    private let textProjection: Linear?

    /// Reads the weights; names without the prefix `text_model.`, which `TensorNames` adds where a file has it.
    init(_ loader: WeightLoader, _ configuration: CLIPTextModelConfiguration, on device: TensorDevice) throws {
        self.configuration = configuration
        self.device = device
        let width = configuration.hiddenSize
        positions = try loader.floats(
            "embeddings.position_embedding.weight",
            [configuration.maxPositionEmbeddings, width]
        )
        embeddings = try loader.withSources(
            [("embeddings.token_embedding.weight", [configuration.vocabSize, width])]
        ) {
            [positions] in
            try EmbeddingWeights(table: $0[0], positions: positions, channels: width, on: device)
        }
        layers = try (0..<configuration.layers).map {
            try CLIPEncoderLayer(loader.at("encoder.layers.\($0)"), configuration, on: device)
        }
        finalLayerNorm = try LayerNorm(
            loader.at("final_layer_norm"),
            width,
            epsilon: configuration.layerNormEps,
            on: device
        )
        textProjection = try configuration.projectionDim.map {
            try Linear(loader.at("text_projection"), width, $0, hasBias: false, on: device)
        }
    }

    /// Rows of the token embedding.
    var vocabularySize: Int { configuration.vocabSize }

    /// Transformer layers.
    var layerCount: Int { layers.count }

    /// Encodes a batch of token ids.
    ///
    /// - Parameters:
    ///   - ids: B rows of T token ids.
    ///   - hiddenState: Which hidden state is returned; the pooled state is always that of the whole encoder.
    ///   - vectors: What ids from the vocabulary's size on stand for, `hiddenSize` numbers each; as many as needed (traps).
    func callAsFunction(_ ids: [[Int32]], _ hiddenState: HiddenState = .last, vectors: [[Float]] = []) throws
        -> EncodedPrompts
    {
        let width = configuration.hiddenSize
        var places: [Int] = []
        var values: [Float] = []
        for (row, ids) in ids.enumerated() {
            for (position, id) in ids.enumerated() where id >= Int32(configuration.vocabSize) {
                places.append(row * ids.count + position)
                let offset = position * width
                values += zip(vectors[Int(id) - configuration.vocabSize], positions[offset..<offset + width]).map(+)
            }
        }
        // The end of a text may be found by its being the largest id.
        let ids = ids.map { $0.map { $0 < Int32(configuration.vocabSize) ? $0 : 0 } }
        var x = try device.embedding(ids, embeddings)
        if !places.isEmpty {
            try x.replaceRows(at: places, with: device.tensor(values, shape: [places.count, width]))
        }
        let kept = max(layers.count - hiddenState.skippedLayers, 0)
        for layer in layers[..<kept] { x = try layer(x) }
        let states = hiddenState.isNormalized ? try finalLayerNorm(x) : x
        guard let textProjection else { return EncodedPrompts(hiddenStates: states, pooled: nil) }
        for layer in layers[kept...] { x = try layer(x) }
        let ends = try finalLayerNorm(x).rows(at: ids.map(configuration.endPosition(in:)))
        return EncodedPrompts(hiddenStates: states, pooled: try textProjection(ends))
    }
}

/// One pre-norm transformer layer with causal self-attention.
private struct CLIPEncoderLayer {
    let layerNorm1: LayerNorm
    let queryKeyValue: Linear
    let outProj: Linear
    let layerNorm2: LayerNorm
    let fc1: Linear
    let fc2: Linear
    let heads: Int
    let headSize: Int
    let activation: ActivationFunction

    init(_ loader: WeightLoader, _ configuration: CLIPTextModelConfiguration, on device: TensorDevice) throws {
        let width = configuration.hiddenSize
        heads = configuration.heads
        headSize = width / heads
        activation =
            switch configuration.hiddenAct {
            case .quickGELU: .quickGELU
            case .gelu: .gelu
            }
        let epsilon = configuration.layerNormEps
        layerNorm1 = try LayerNorm(loader.at("layer_norm1"), width, epsilon: epsilon, on: device)
        queryKeyValue = try Linear(
            loader.at("self_attn"),
            names: ["q_proj", "k_proj", "v_proj"],
            width,
            width,
            on: device
        )
        outProj = try Linear(loader.at("self_attn.out_proj"), width, width, on: device)
        layerNorm2 = try LayerNorm(loader.at("layer_norm2"), width, epsilon: epsilon, on: device)
        fc1 = try Linear(loader.at("mlp.fc1"), width, configuration.intermediateSize, on: device)
        fc2 = try Linear(loader.at("mlp.fc2"), configuration.intermediateSize, width, on: device)
    }

    func callAsFunction(_ input: Tensor) throws -> Tensor {
        let width = heads * headSize
        let qkv = try queryKeyValue(layerNorm1(input), isOperand: true)
        let attended = try attention(
            queries: Columns(qkv),
            keys: Columns(qkv, offset: width),
            values: Columns(qkv, offset: 2 * width),
            heads: heads,
            headSize: headSize,
            isCausal: true
        )
        let x = try outProj(attended, residual: input)
        return try fc2(fc1(layerNorm2(x), function: activation, isOperand: true), residual: x)
    }
}
