// The shape of the text encoder, read from `text_encoder/config.json` with the defaults of transformers 5.23
// (models/clip/configuration_clip.py).

internal import JSON

/// Configuration of `CLIPTextModel`.
struct CLIPTextModelConfiguration: Sendable, Equatable {
    /// Activation functions of the feed-forward layers.
    enum Activation: String, CaseIterable, Sendable {
        /// `x * sigmoid(1.702 * x)`: Stable Diffusion 1.x.
        case quickGELU = "quick_gelu"
        /// The exact function, by the error function: Stable Diffusion 2.x.
        case gelu
    }

    /// Rows of the token embedding.
    var vocabSize = 49_408
    /// Width of the hidden states.
    var hiddenSize = 512
    /// Width within the feed-forward layers.
    var intermediateSize = 2048
    /// Transformer layers.
    var layers = 12
    /// Attention heads.
    var heads = 8
    /// Longest sequence of tokens.
    var maxPositionEmbeddings = 77
    /// Activation of the feed-forward layers.
    var hiddenAct = Activation.quickGELU
    /// Epsilon of every layer normalisation.
    var layerNormEps = 1e-5
    /// Token that ends a text, at whose place the pooled state is taken.
    var eosTokenID = 49_407
    /// Width of the pooled, projected state; nil where the encoder has no projection (`CLIPTextModel`).
    var projectionDim: Int?

    /// transformers' defaults.
    init() {}

    /// The place of the token that ends a text: the first, as a text may be padded with the same.
    ///
    /// Files from before transformers 4.31 say 2, which is no token that ends a text: they mean the token with the largest id.
    func endPosition(in ids: [Int32]) -> Int {
        let end = eosTokenID == 2 ? ids.max() : Int32(exactly: eosTokenID)
        return ids.firstIndex { $0 == end } ?? 0
    }

    /// Reads the configuration of a checkpoint.
    ///
    /// - Parameter hasProjection: Whether the model's class is `CLIPTextModelWithProjection`.
    init(file: ConfigurationFile, hasProjection: Bool = false) throws(ConfigurationFileError) {
        // A whole CLIP keeps the text encoder's configuration in `text_config`, which the file was opened with.
        try file.require("model_type", oneOf: .string("clip_text_model"))
        // The pipeline would hide padding from the encoder; no Stable Diffusion was trained so.
        try file.require("use_attention_mask", oneOf: .bool(false))

        vocabSize = try file.integer("vocab_size", default: vocabSize, in: 1...1_000_000)
        hiddenSize = try file.integer("hidden_size", default: hiddenSize, in: 1...16_384)
        intermediateSize = try file.integer("intermediate_size", default: intermediateSize, in: 1...65_536)
        layers = try file.integer("num_hidden_layers", default: layers, in: 1...256)
        heads = try file.integer("num_attention_heads", default: heads, in: 1...1024)
        guard hiddenSize % heads == 0 else {
            throw file.refusal("num_attention_heads", allowed: "a divisor of hidden_size, \(hiddenSize)")
        }
        // Start and end take a position each; one is left for the prompt.
        maxPositionEmbeddings = try file.integer(
            "max_position_embeddings",
            default: maxPositionEmbeddings,
            in: 3...4096
        )
        hiddenAct = try file.choice("hidden_act", default: hiddenAct)
        layerNormEps = try file.number("layer_norm_eps", default: layerNormEps, in: 0...1)
        eosTokenID = try file.optionalInteger("eos_token_id", in: 0...1_000_000) ?? eosTokenID
        if hasProjection { projectionDim = try file.integer("projection_dim", default: 512, in: 1...16_384) }
    }
}
