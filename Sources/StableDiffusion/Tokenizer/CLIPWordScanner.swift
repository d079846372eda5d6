// Cuts normalised text into the words that are encoded one by one. By hand instead of by a regular expression, because
// the pattern is short and the text may be long: `<|startoftext|>` and `<|endoftext|>` in one piece with what a second
// pass makes of them, the English contractions, runs of letters, single digits, runs of anything else.

/// Iterates over the words of a text; white space is dropped.
struct CLIPWordScanner {
    private let text: ArraySlice<Unicode.Scalar>
    private var position: Int
    /// End of a typed special token being passed; runs must not cross it.
    private var boundary: Int?

    private static let specialTokens = ["<|startoftext|>", "<|endoftext|>"].map { Array($0.unicodeScalars) }
    private static let contractions = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"].map { Array($0.unicodeScalars) }

    private enum Class {
        case letter, number, whiteSpace, other
    }

    /// Scans normalised text.
    init(_ text: ArraySlice<Unicode.Scalar>) {
        self.text = text
        position = text.startIndex
    }

    /// The next word; nil at the end.
    mutating func next() -> ArraySlice<Unicode.Scalar>? {
        while position < text.endIndex, Self.classify(text[position]) == .whiteSpace { position += 1 }
        guard position < text.endIndex else { return nil }
        if let boundary, position >= boundary { self.boundary = nil }

        if boundary == nil, let token = prefix(of: Self.specialTokens) {
            // In one piece here, it is cut again like any other text, but not together with what surrounds it.
            boundary = position + token
        }
        if let length = prefix(of: Self.contractions) { return take(length) }
        let kind = Self.classify(text[position])
        guard kind != .number else { return take(1) }
        var end = position + 1
        let limit = boundary ?? text.endIndex
        while end < limit, Self.classify(text[end]) == kind { end += 1 }
        return take(end - position)
    }

    private mutating func take(_ length: Int) -> ArraySlice<Unicode.Scalar> {
        defer { position += length }
        return text[position..<(position + length)]
    }

    /// Length of the first of several texts that stands here.
    private func prefix(of candidates: [[Unicode.Scalar]]) -> Int? {
        let first = text[position]
        return candidates.first { $0.first == first && text[position...].starts(with: $0) }?.count
    }

    /// Whether a character separates words.
    static func isWhiteSpace(_ scalar: Unicode.Scalar) -> Bool {
        scalar.value < 0x80
            ? scalar.value == 0x20 || 0x09...0x0D ~= scalar.value
            : scalar.properties.isWhitespace
    }

    private static func classify(_ scalar: Unicode.Scalar) -> Class {
        switch scalar.value {
        case 0x61...0x7A, 0x41...0x5A: return .letter
        case 0x30...0x39: return .number
        case ..<0x80: return isWhiteSpace(scalar) ? .whiteSpace : .other
        default: break
        }
        // The reference's expressions know Unicode 16; letters and digits added later are symbols to it.
        let properties = scalar.properties
        guard let age = properties.age, age.major <= 16 else { return .other }
        switch properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: return .letter
        case .decimalNumber, .letterNumber, .otherNumber: return .number
        default: return properties.isWhitespace ? .whiteSpace : .other
        }
    }
}
