// The prompt syntax that AUTOMATIC1111's web UI made common: (more), [less], (just so:1.3), BREAK, and \( for a bracket as such.

internal import Foundation

/// How a prompt is read.
public enum PromptSyntax: String, CaseIterable, Sendable {
    /// As it stands, up to the length that the text encoder reads; what diffusers does.
    case plain
    /// With weights, `BREAK` and no limit of length, as AUTOMATIC1111's web UI does.
    case a1111
}

/// A prompt taken apart.
struct WeightedPrompt: Sendable, Equatable {
    /// A stretch of text whose tokens count alike, or the end of a chunk.
    enum Part: Sendable, Equatable {
        case text(String, weight: Double)
        case chunkEnd
    }

    /// What is wrong with a prompt, as the end of a sentence about it.
    struct SyntaxError: Error, Equatable {
        let reason: String
    }

    /// The parts in order; at least one.
    let parts: [Part]

    /// A bracket multiplies the weight of what it holds by this, or by its inverse.
    private static let bracketWeight = 1.1
    /// The largest weight, and the largest product of weights.
    private static let maximumWeight = 1000.0

    /// Takes a prompt apart.
    ///
    /// A bracket that is never closed counts to the end. Weights multiply where brackets hold brackets.
    /// - Throws: Where a weight is no number, and for parts of that program's syntax that are not understood here: they would change the picture
    ///   unnoticed.
    init(_ prompt: String) throws(SyntaxError) {
        guard prompt.firstRange(of: #/\bAND\b/#) == nil else {
            throw SyntaxError(
                reason: "several prompts joined by AND are not supported; the word is written in small letters"
            )
        }
        try Self.refuseEditing(prompt)
        var reader = Reader()
        try reader.read(prompt)
        parts = reader.merged
    }

    /// The state while a prompt is read from left to right.
    private struct Reader {
        /// Text and weight; nil ends a chunk.
        private var pieces: [(text: String, weight: Double)?] = []
        private var openRound: [Int] = []
        private var openSquare: [Int] = []

        mutating func read(_ prompt: String) throws(SyntaxError) {
            var rest = Substring(prompt)
            while let first = rest.first {
                if first == "\\" {
                    // Only brackets and the backslash itself are escaped; otherwise it says nothing.
                    rest.removeFirst()
                    if let next = rest.first, "()[]\\".contains(next) {
                        pieces.append((String(next), 1))
                        rest.removeFirst()
                    }
                } else if first == "(" {
                    openRound.append(pieces.count)
                    rest.removeFirst()
                } else if first == "[" {
                    openSquare.append(pieces.count)
                    rest.removeFirst()
                } else if first == ":", let start = openRound.last, let end = WeightedPrompt.weightEnd(rest) {
                    let number = rest[rest.index(after: rest.startIndex)..<rest.index(before: end)]
                    let literal = number.trimmingCharacters(in: .whitespaces)
                    guard let weight = Double(literal), abs(weight) <= WeightedPrompt.maximumWeight else {
                        throw SyntaxError(reason: "the weight \"\(literal)\" is no number from -1000 to 1000")
                    }
                    multiply(from: start, by: weight)
                    openRound.removeLast()
                    rest = rest[end...]
                } else if first == ")", let start = openRound.popLast() {
                    multiply(from: start, by: WeightedPrompt.bracketWeight)
                    rest.removeFirst()
                } else if first == "]", let start = openSquare.popLast() {
                    multiply(from: start, by: 1 / WeightedPrompt.bracketWeight)
                    rest.removeFirst()
                } else {
                    let stop = rest.dropFirst().firstIndex { "\\()[]:".contains($0) } ?? rest.endIndex
                    appendText(rest[..<stop])
                    rest = rest[stop...]
                }
            }
            for start in openRound { multiply(from: start, by: WeightedPrompt.bracketWeight) }
            for start in openSquare { multiply(from: start, by: 1 / WeightedPrompt.bracketWeight) }
            guard pieces.allSatisfy({ abs($0?.weight ?? 0) <= WeightedPrompt.maximumWeight }) else {
                throw SyntaxError(reason: "its weights multiply to more than \(Int(WeightedPrompt.maximumWeight))")
            }
        }

        private mutating func multiply(from start: Int, by factor: Double) {
            for index in start..<pieces.count { pieces[index]?.weight *= factor }
        }

        /// A text, in which the word BREAK, with the white space around it, ends a chunk.
        private mutating func appendText(_ text: Substring) {
            for (index, part) in WeightedPrompt.splitAtBreaks(String(text)).enumerated() {
                if index > 0 { pieces.append(nil) }
                pieces.append((part, 1))
            }
        }

        /// The pieces with neighbours of one weight joined, so that a word cut by an escape is one word again.
        var merged: [Part] {
            var parts: [Part] = []
            for piece in pieces {
                guard let piece else {
                    parts.append(.chunkEnd)
                    continue
                }
                if case .text(let text, piece.weight)? = parts.last {
                    parts[parts.count - 1] = .text(text + piece.text, weight: piece.weight)
                } else {
                    parts.append(.text(piece.text, weight: piece.weight))
                }
            }
            return parts.isEmpty ? [.text("", weight: 1)] : parts
        }
    }

    /// The place after `: number )`, nil where this is only a colon.
    private static func weightEnd(_ text: Substring) -> String.Index? {
        var rest = text.dropFirst().drop { $0.isWhitespace }
        if let sign = rest.first, "+-".contains(sign) { rest.removeFirst() }
        let digits = rest.prefix { $0 == "." || ("0"..."9").contains($0) }
        rest = rest[digits.endIndex...].drop { $0.isWhitespace }
        guard !digits.isEmpty, rest.first == ")" else { return nil }
        return rest.index(after: rest.startIndex)
    }

    private static func splitAtBreaks(_ text: String) -> [String] {
        var parts: [String] = []
        var start = text.startIndex
        var search = start
        while let range = text.range(of: "BREAK", range: search..<text.endIndex) {
            search = range.upperBound
            let isWord =
                !(text[..<range.lowerBound].last.map(isWordCharacter) ?? false)
                && !(text[range.upperBound...].first.map(isWordCharacter) ?? false)
            guard isWord else { continue }
            let before = text[start..<range.lowerBound]
            parts.append(String(before.reversed().drop { $0.isWhitespace }.reversed()))
            start = text[range.upperBound...].firstIndex { !$0.isWhitespace } ?? text.endIndex
            search = start
        }
        return parts + [String(text[start...])]
    }

    private static func isWordCharacter(_ character: Character) -> Bool {
        character.isLetter || character.isNumber || character == "_"
    }

    /// Refuses `[from:to:when]` and `[a|b]`, which change the prompt between steps.
    private static func refuseEditing(_ text: String) throws(SyntaxError) {
        // The open brackets: whether each is a square one, and has a colon of its own.
        var open: [(isSquare: Bool, hasColon: Bool)] = []
        var isEscaped = false
        for character in text {
            defer { isEscaped = character == "\\" && !isEscaped }
            if isEscaped { continue }
            switch character {
            case "[": open.append((true, false))
            case "(": open.append((false, false))
            case ")": _ = open.popLast()
            case "]":
                guard let bracket = open.popLast(), bracket.isSquare, bracket.hasColon else { break }
                throw SyntaxError(reason: "prompt editing, [from:to:when], is not supported; escape the bracket as \\[")
            case ":": if let last = open.indices.last { open[last].hasColon = true }
            case "|" where open.last?.isSquare ?? false:
                throw SyntaxError(reason: "alternating words, [a|b], are not supported; escape the bracket as \\[")
            default: break
            }
        }
    }
}
