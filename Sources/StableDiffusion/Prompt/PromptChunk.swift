// How a prompt of any length becomes rows of as many tokens as a text encoder reads, each token with a weight.

/// What a text encoder reads at once.
struct PromptChunk: Sendable, Equatable {
    /// Start, tokens, end, padding: as many as the encoder has positions.
    var ids: [Int32]
    /// The weight of each.
    var weights: [Float]

    /// Whether weights make a difference.
    var isWeighted: Bool { weights.contains { $0 != 1 } }
}

extension CLIPTokenizer {
    /// The chunks of a prompt in AUTOMATIC1111's way (modules/sd_hijack_clip.py of its version 1.10).
    ///
    /// A chunk that is full ends after its last comma, where that is one of its last `commaBacktrack` tokens.
    /// - Parameter replacements: Tokens that others take the place of; those of one are never in two chunks.
    func chunks(_ prompt: WeightedPrompt, _ replacements: TokenReplacements = TokenReplacements()) -> [PromptChunk] {
        let room = maximumLength - 2
        let comma = encode(",").first
        var chunks: [PromptChunk] = []
        var ids: [Int] = []
        var weights: [Double] = []
        // How many tokens there were up to and with the last comma.
        var afterComma: Int?

        func end() {
            let count = ids.count
            // The text ends where its last token is; what follows is padding, which some models have a token of its own for.
            let padding = [Int](repeating: padID, count: room - count)
            let all = [startID] + ids + [endID] + padding
            chunks.append(
                PromptChunk(
                    ids: all.map(Int32.init),
                    weights: [1] + weights.map(Float.init) + [Float](repeating: 1, count: room - count + 1)
                )
            )
            (ids, weights, afterComma) = ([], [], nil)
        }

        for part in prompt.parts {
            guard case .text(let text, let weight) = part else {
                end()
                continue
            }
            for whole in replacements.groups(encode(text)) {
                // More vectors than a small encoder has room for are cut.
                let group = whole.prefix(room)
                if Array(group) == [comma] {
                    afterComma = ids.count + 1
                } else if ids.count == room, let cut = afterComma, room - cut < Self.commaBacktrack {
                    let moved = (Array(ids[cut...]), Array(weights[cut...]))
                    (ids, weights) = (Array(ids[..<cut]), Array(weights[..<cut]))
                    end()
                    (ids, weights) = moved
                }
                if ids.count + group.count > room { end() }
                ids += group
                weights += group.map { _ in weight }
            }
        }
        if !ids.isEmpty || chunks.isEmpty { end() }
        return chunks
    }

    /// Tokens within which a full chunk ends at a comma instead.
    private static let commaBacktrack = 20
}
