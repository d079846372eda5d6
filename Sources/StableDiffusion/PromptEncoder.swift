// What the UNet is given of a request's prompts: tokenised and encoded by one text encoder, or by the two of Stable Diffusion XL side by side.

internal import TensorOps

/// Prompts to conditioning.
struct PromptEncoder {
    /// A text encoder and the tokenizer its ids come from.
    private struct Part {
        let tokenizer: CLIPTokenizer
        let model: CLIPTextModel
    }

    private let parts: [Part]
    private let hiddenState: CLIPTextModel.HiddenState
    private let forceZerosForEmptyPrompt: Bool

    /// Reads the encoders of a folder in diffusers' layout.
    ///
    /// - Parameters:
    ///   - tokenizers: One for each of the configuration's text encoders.
    ///   - checkpoints: Their weights.
    init(
        _ configuration: ModelConfiguration,
        tokenizers: [CLIPTokenizer],
        checkpoints: [Checkpoint],
        on device: TensorDevice
    ) throws {
        hiddenState = configuration.hiddenState
        forceZerosForEmptyPrompt = configuration.forceZerosForEmptyPrompt
        parts = try configuration.textEncoders.indices.map { index in
            Part(
                tokenizer: tokenizers[index],
                model: try CLIPTextModel(
                    WeightLoader(checkpoints[index]),
                    configuration.textEncoders[index],
                    on: device
                )
            )
        }
    }

    /// Encodes a request's prompts, the negative prompt first when guidance is on.
    ///
    /// - Returns: B is 2 with guidance, else 1; and the end of the prompt that was cut, nil if none was.
    func callAsFunction(_ request: GenerationRequest) throws -> (prompts: EncodedPrompts, truncatedPrompt: String?) {
        let truncated = parts.first?.tokenizer.tokenize(request.prompt).truncatedPrompt
        guard request.usesGuidance else { return (try encode([request.prompt]), truncated) }
        guard forceZerosForEmptyPrompt, request.negativePrompt.isEmpty else {
            return (try encode([request.negativePrompt, request.prompt]), truncated)
        }
        let prompt = try encode([request.prompt])
        return (
            EncodedPrompts(
                hiddenStates: try Self.zeros(like: prompt.hiddenStates).appending(prompt.hiddenStates),
                pooled: try prompt.pooled.map { try Self.zeros(like: $0).appending($0) }
            ), truncated
        )
    }

    /// Encodes texts, each by all encoders.
    private func encode(_ texts: [String]) throws -> EncodedPrompts {
        var result: EncodedPrompts?
        for part in parts {
            let ids = texts.map { part.tokenizer.tokenize($0).ids.map(Int32.init) }
            let encoded = try part.model(ids, hiddenState)
            guard let left = result else {
                result = encoded
                continue
            }
            result = EncodedPrompts(
                hiddenStates: try left.hiddenStates.concatenated(with: encoded.hiddenStates),
                pooled: encoded.pooled
            )
        }
        guard let result else { preconditionFailure("a model without a text encoder") }
        return result
    }

    private static func zeros(like tensor: Tensor) throws -> Tensor {
        try tensor.device.tensor([Float](repeating: 0, count: tensor.count), shape: tensor.shape)
    }
}
