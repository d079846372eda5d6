// What the UNet is given of a request's prompts: tokenised and encoded by one text encoder, or by the two of Stable Diffusion XL side by side.

internal import TensorOps

/// Prompts to conditioning.
struct PromptEncoder {
    /// A text encoder and the tokenizer its ids come from.
    private struct Part {
        let tokenizer: CLIPTokenizer
        let model: CLIPTextModel
    }

    /// A request's prompts, encoded.
    struct Output {
        /// The negative prompt first where guidance is on.
        ///
        /// One batch of all, or one for each where they differ in length.
        var batches: [EncodedPrompts]
        /// The end of the prompt that was cut; nil if none was.
        var truncatedPrompt: String?
    }

    private let parts: [Part]
    private let inversions: TextualInversions
    private let hiddenState: CLIPTextModel.HiddenState
    private let forceZerosForEmptyPrompt: Bool

    /// Reads the encoders of a model.
    ///
    /// - Parameters:
    ///   - tokenizers: One for each of the configuration's text encoders.
    ///   - checkpoints: Their weights.
    ///   - embeddingsDirectory: Where textual inversions are; nil for none.
    ///   - adapters: Gets the layers that a LoRA may change.
    init(
        _ configuration: ModelConfiguration,
        tokenizers: [CLIPTokenizer],
        checkpoints: [Checkpoint],
        adapters: AdapterList,
        embeddingsDirectory: String?,
        on device: TensorDevice
    ) throws {
        hiddenState = configuration.hiddenState
        inversions = TextualInversions(embeddingsDirectory, widths: configuration.textEncoders.map(\.hiddenSize))
        forceZerosForEmptyPrompt = configuration.forceZerosForEmptyPrompt
        parts = try configuration.textEncoders.indices.map { index in
            Part(
                tokenizer: tokenizers[index],
                model: try CLIPTextModel(
                    WeightLoader(checkpoints[index], adaptation: (adapters, .textEncoder(index))),
                    configuration.textEncoders[index],
                    on: device
                )
            )
        }
    }

    /// Encodes a request's prompts.
    ///
    /// - Parameter usesGuidance: Whether the negative prompt is encoded too.
    /// - Throws: `GenerationError.invalid` for a prompt whose syntax is not understood, or layers that no encoder has.
    func callAsFunction(_ request: GenerationRequest, usesGuidance: Bool) throws -> Output {
        let layers = max(1, (parts.map(\.model.layerCount).min() ?? 0) - hiddenState.skippedLayers)
        guard 1...layers ~= request.clipSkip else {
            throw GenerationError.invalid(
                field: "clip_skip",
                reason: "\(request.clipSkip) is not from 1 to \(layers)"
            )
        }
        let usesZeros = forceZerosForEmptyPrompt && request.negativePrompt.isEmpty
        // Looked for once: files that come or go meanwhile would give ids without vectors.
        let inversions = try inversions.named(in: request)
        let prompt = try rows(request.prompt, field: "prompt", request, inversions)
        guard usesGuidance else {
            return Output(batches: [try encode([prompt], request, inversions)], truncatedPrompt: prompt.truncated)
        }
        if usesZeros {
            let encoded = try encode([prompt], request, inversions)
            return Output(
                batches: [try encoded.zeros().appending(encoded)],
                truncatedPrompt: prompt.truncated
            )
        }
        let negative = try rows(request.negativePrompt, field: "negative_prompt", request, inversions)
        let batches =
            if prompt.count == negative.count {
                [try encode([negative, prompt], request, inversions)]
            } else {
                [try encode([negative], request, inversions), try encode([prompt], request, inversions)]
            }
        return Output(batches: batches, truncatedPrompt: prompt.truncated)
    }

    /// Tokens of each prompt as the UNet is given them.
    func tokenCounts(_ request: GenerationRequest, usesGuidance: Bool) throws(GenerationError) -> [Int] {
        let inversions = try inversions.named(in: request)
        let prompt = try rows(request.prompt, field: "prompt", request, inversions)
        var prompts = [prompt]
        if usesGuidance {
            // Zeros are as many as the prompt's tokens.
            let usesZeros = forceZerosForEmptyPrompt && request.negativePrompt.isEmpty
            prompts.append(
                usesZeros
                    ? prompt : try rows(request.negativePrompt, field: "negative_prompt", request, inversions)
            )
        }
        return prompts.map { $0.chunks.first?.reduce(0) { $0 + $1.ids.count } ?? 0 }
    }

    /// A prompt as rows of tokens, for each of the encoders.
    private struct Rows {
        var chunks: [[PromptChunk]]
        var truncated: String?

        /// Rows of each encoder.
        var count: Int { chunks.first?.count ?? 0 }
    }

    /// More chunks than anybody writes; each makes every step slower.
    private static let maximumChunks = 32

    private func rows(
        _ prompt: String,
        field: String,
        _ request: GenerationRequest,
        _ inversions: [TextualInversion]
    ) throws(GenerationError) -> Rows {
        let replacements = parts.map {
            TokenReplacements(inversions, $0.tokenizer, firstID: $0.model.vocabularySize)
        }
        switch request.promptSyntax {
        case .plain:
            let tokenized = zip(parts, replacements).map { $0.tokenizer.tokenize(prompt, $1) }
            return Rows(
                chunks: tokenized.map {
                    [PromptChunk(ids: $0.ids.map(Int32.init), weights: $0.ids.map { _ in 1 })]
                },
                truncated: tokenized.first?.truncatedPrompt
            )
        case .a1111:
            let weighted: WeightedPrompt
            do {
                weighted = try WeightedPrompt(prompt)
            } catch {
                throw .invalid(field: field, reason: error.reason)
            }
            let chunks = zip(parts, replacements).map { $0.tokenizer.chunks(weighted, $1) }
            // The vocabularies of Stable Diffusion XL's encoders are one; with others the rows would not stand side by side.
            guard Set(chunks.map(\.count)).count == 1 else {
                throw .invalid(
                    field: field,
                    reason: "the model's two tokenizers make a different number of chunks of it"
                )
            }
            let count = chunks.map(\.count).max() ?? 0
            guard count <= Self.maximumChunks else {
                throw .invalid(
                    field: field,
                    reason: "it fills the text encoder \(count) times; allowed is \(Self.maximumChunks) times"
                )
            }
            return Rows(chunks: chunks, truncated: nil)
        }
    }

    /// Encodes prompts of equally many rows, each by all encoders; the rows of a prompt follow each other along T.
    private func encode(
        _ prompts: [Rows],
        _ request: GenerationRequest,
        _ inversions: [TextualInversion]
    ) throws -> EncodedPrompts {
        var hiddenState = hiddenState
        hiddenState.skippedLayers += request.clipSkip - 1
        var result: EncodedPrompts?
        for (index, part) in parts.enumerated() {
            let chunks = prompts.flatMap { $0.chunks[index] }
            var encoded = try part.model(
                chunks.map(\.ids),
                hiddenState,
                vectors: inversions.flatMap { $0.vectors[index] }
            )
            if chunks.contains(where: \.isWeighted) {
                encoded.hiddenStates = try encoded.hiddenStates.weighted(by: chunks.map(\.weights))
            }
            let (tokens, channels) = (encoded.hiddenStates.shape[1], encoded.hiddenStates.channels)
            let rowsOfPrompt = prompts.first?.count ?? 1
            encoded.hiddenStates = encoded.hiddenStates.reshaped([prompts.count, rowsOfPrompt * tokens, channels])
            if let pooled = encoded.pooled, rowsOfPrompt > 1 {
                // That of the first chunk stands for the prompt.
                encoded.pooled = try pooled.reshaped([prompts.count, rowsOfPrompt, pooled.channels])
                    .rows(at: prompts.map { _ in 0 })
            }
            if let left = result {
                encoded.hiddenStates = try left.hiddenStates.concatenated(with: encoded.hiddenStates)
            }
            result = encoded
        }
        guard let result else { preconditionFailure("a model without a text encoder") }
        return result
    }
}

extension EncodedPrompts {
    /// Zeros of the same shapes.
    fileprivate func zeros() throws -> EncodedPrompts {
        func zeros(_ tensor: Tensor) throws -> Tensor {
            try tensor.device.tensor([Float](repeating: 0, count: tensor.count), shape: tensor.shape)
        }
        return EncodedPrompts(hiddenStates: try zeros(hiddenStates), pooled: try pooled.map(zeros))
    }

    /// Two batches one after the other.
    fileprivate func appending(_ other: EncodedPrompts) throws -> EncodedPrompts {
        let pooled: Tensor? = if let pooled, let more = other.pooled { try pooled.appending(more) } else { nil }
        return EncodedPrompts(hiddenStates: try hiddenStates.appending(other.hiddenStates), pooled: pooled)
    }
}

extension Tensor {
    /// Hidden states `[B, T, C]` times the weights of their tokens, and each row's mean as it was before, so that weights shift what matters
    /// without making all of it stronger: what AUTOMATIC1111 calls the original emphasis.
    ///
    /// Computed by the host: a prompt is small, and it happens once.
    fileprivate func weighted(by weights: [[Float]]) throws -> Tensor {
        var values = try floats()
        let rowCount = shape[1] * channels
        for (row, weights) in weights.enumerated() where weights.contains(where: { $0 != 1 }) {
            let range = row * rowCount..<(row + 1) * rowCount
            let before = values[range].reduce(0.0) { $0 + Double($1) }
            for (token, weight) in weights.enumerated() {
                for index in 0..<channels { values[range.lowerBound + token * channels + index] *= weight }
            }
            let after = values[range].reduce(0.0) { $0 + Double($1) }
            // A mean of zero cannot be brought back to what it was.
            let scale = Float(before / after)
            guard scale.isFinite else { continue }
            for index in range { values[index] *= scale }
        }
        return try device.tensor(values, shape: shape)
    }
}
