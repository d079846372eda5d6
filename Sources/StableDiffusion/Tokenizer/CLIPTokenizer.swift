// Turns a prompt into the token ids of CLIP's text encoder, the same as transformers 5.23's CLIPTokenizer for any text:
// special tokens typed in the prompt are found first, the rest is normalised (NFC, white space collapsed, lower case),
// cut into words, and each word encoded by byte pairs.

/// A prompt as the text encoder takes it.
struct TokenizedPrompt: Sendable, Equatable {
    /// As many ids as the encoder has positions: start, the prompt, end, padding.
    let ids: [Int]
    /// Ids before the padding, including start and end.
    let count: Int
    /// The end of the prompt that did not fit, in the tokenizer's own spelling; nil when all of it did.
    let truncatedPrompt: String?
}

/// The tokenizer of CLIP.
///
/// A value without mutable state, safe to use from several threads.
struct CLIPTokenizer: Sendable {
    /// A token found in the text as such, instead of being put together from bytes.
    struct AddedToken: Sendable, Equatable {
        /// The text.
        let content: String
        /// Its id.
        let id: Int
        /// Whether it is looked for after normalisation, and so without regard to case.
        let normalized: Bool
    }

    /// Length of the ids of a prompt.
    let maximumLength: Int
    /// Id a prompt starts with.
    let startID: Int
    /// Id a prompt ends with.
    let endID: Int
    /// Id that fills a prompt up to its length.
    let padID: Int
    private let encoding: BytePairEncoding
    private let rawTokens: [AddedToken]
    private let normalizedTokens: [(content: [Unicode.Scalar], id: Int)]

    /// Reads a tokenizer's folder: `vocab.json` and `merges.txt`, or `tokenizer.json`, and what there is of
    /// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.
    ///
    /// - Parameters:
    ///   - directory: such as `model/tokenizer`.
    ///   - textEncoder: what the ids are for: all of them must be rows of its embedding, and a prompt must fit its
    ///     positions.
    init(directory: String, textEncoder: CLIPTextModelConfiguration) throws(ConfigurationFileError) {
        try self.init(files: CLIPTokenizerFiles(directory: directory), textEncoder: textEncoder)
    }

    /// The tokenizer of files that have been read, for a text encoder.
    init(files: CLIPTokenizerFiles, textEncoder: CLIPTextModelConfiguration) throws(ConfigurationFileError) {
        guard files.maximumID < textEncoder.vocabSize else {
            throw ConfigurationFileError(
                file: files.vocabularyPath,
                found: "the vocabulary has the id \(files.maximumID)",
                allowed: "ids below the text encoder's vocab_size, \(textEncoder.vocabSize)"
            )
        }
        maximumLength = min(files.modelMaxLength ?? .max, textEncoder.maxPositionEmbeddings)
        startID = files.startID
        endID = files.endID
        padID = files.padID
        encoding = files.encoding
        rawTokens = files.addedTokens.filter { !$0.normalized && !$0.content.isEmpty }
        normalizedTokens = files.addedTokens.filter { $0.normalized && !$0.content.isEmpty }
            .map { (content: Self.normalize($0.content[...]), id: $0.id) }
            .filter { !$0.content.isEmpty }
    }

    /// The ids of a prompt, cut and padded to the encoder's length.
    ///
    /// - Parameter replacements: Tokens that others take the place of, whose ids are beyond the vocabulary.
    func tokenize(_ prompt: String, _ replacements: TokenReplacements = TokenReplacements()) -> TokenizedPrompt {
        let encoded = encode(prompt)
        // What stands for vectors has no text that could be cut.
        let largest = encoded.max() ?? 0
        let ids = replacements.groups(encoded).flatMap { $0 }
        let room = maximumLength - 2
        let kept = ids.prefix(room)
        let count = kept.count + 2
        let padding = repeatElement(padID, count: maximumLength - count)
        let removed = encoding.decode(ids.dropFirst(room).filter { $0 <= largest }[...])
        return TokenizedPrompt(
            ids: [startID] + kept + [endID] + padding,
            count: count,
            truncatedPrompt: ids.count > room ? removed : nil
        )
    }

    /// The ids of a text of any length, without start, end and padding.
    func encode(_ text: String) -> [Int] {
        var ids: [Int] = []
        var start = text.startIndex
        // Where each token stands next; found again only once passed, so that many tokens cost no more than one.
        var next = rawTokens.map { text.utf8.firstRange(of: $0.content.utf8) }
        while true {
            var first: (range: Range<String.Index>, id: Int)?
            for (index, token) in rawTokens.enumerated() {
                if let range = next[index], range.lowerBound < start {
                    next[index] = text.utf8[start...].firstRange(of: token.content.utf8)
                }
                guard let range = next[index] else { continue }
                // The leftmost, and of those that begin at one place the longest.
                if let other = first?.range,
                    (other.lowerBound, range.upperBound) < (range.lowerBound, other.upperBound)
                {
                    continue
                }
                first = (range, token.id)
            }
            guard let first else { break }
            // Text between tokens is normalised piece by piece, as in the reference: a mark after a token stays a mark.
            encode(normalizing: text[start..<first.range.lowerBound], into: &ids)
            ids.append(first.id)
            start = first.range.upperBound
        }
        encode(normalizing: text[start...], into: &ids)
        return ids
    }

    private func encode(normalizing text: Substring, into ids: inout [Int]) {
        guard !text.isEmpty else { return }
        let scalars = Self.normalize(text)
        var start = 0
        var position = 0
        while position < scalars.count, !normalizedTokens.isEmpty {
            guard let token = normalizedToken(in: scalars, at: position) else {
                position += 1
                continue
            }
            encode(words: scalars[start..<position], into: &ids)
            ids.append(token.id)
            position += token.content.count
            start = position
        }
        encode(words: scalars[start...], into: &ids)
    }

    private func normalizedToken(
        in scalars: [Unicode.Scalar],
        at position: Int
    ) -> (content: [Unicode.Scalar], id: Int)? {
        var longest: (content: [Unicode.Scalar], id: Int)?
        for token in normalizedTokens
        where token.content[0] == scalars[position] && token.content.count > longest?.content.count ?? 0 {
            if scalars[position...].starts(with: token.content) { longest = token }
        }
        return longest
    }

    private func encode(words scalars: ArraySlice<Unicode.Scalar>, into ids: inout [Int]) {
        var scanner = CLIPWordScanner(scalars)
        var bytes: [UInt8] = []
        while let word = scanner.next() {
            bytes.removeAll(keepingCapacity: true)
            for scalar in word { bytes.append(contentsOf: scalar.utf8) }
            encoding.encode(bytes, into: &ids)
        }
    }

    /// NFC, runs of white space as one space, lower case, in this order.
    private static func normalize(_ text: Substring) -> [Unicode.Scalar] {
        var scalars: [Unicode.Scalar] = []
        scalars.reserveCapacity(text.utf8.count)
        var afterSpace = false
        for scalar in CanonicalComposition.unicode9.normalize(text.unicodeScalars) {
            if CLIPWordScanner.isWhiteSpace(scalar) {
                if !afterSpace { scalars.append(" ") }
                afterSpace = true
                continue
            }
            afterSpace = false
            switch scalar.value {
            case 0x41...0x5A: scalars.append(Unicode.Scalar(UInt8(scalar.value) + 0x20))
            case ..<0x80: scalars.append(scalar)
            default: scalars.append(contentsOf: scalar.properties.lowercaseMapping.unicodeScalars)
            }
        }
        return scalars
    }
}
