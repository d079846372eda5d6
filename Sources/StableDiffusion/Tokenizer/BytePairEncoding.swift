// Byte-level byte-pair encoding (Sennrich, Haddow & Birch 2016, over bytes as GPT-2 does it): a word is a row of bytes,
// and the pair of neighbours that was merged first in training is merged first here, until no pair is known. The last
// symbol of a word is marked with `</w>`. Merging uses a heap, so that a word of any length takes n log n.

/// A vocabulary and its merges.
struct BytePairEncoding: Sendable {
    /// What stands at the end of the last symbol of every word.
    static let endOfWord = "</w>"

    /// Tokens by id, as the vocabulary spells them; nil where an id is unused.
    let tokens: [String?]
    /// Ids of single bytes within a word.
    private let bytes: [Int32]
    /// Ids of single bytes at the end of a word.
    private let finalBytes: [Int32]
    /// Rank and result of each merge, by the pair of ids.
    private let merges: [UInt64: Merge]

    private struct Merge {
        let rank: UInt32
        let result: Int32
    }

    /// Ids beyond this are no vocabulary.
    static let maximumID = 10_000_000

    /// Why a vocabulary cannot be used, as the end of a sentence about the file.
    struct Problem: Error {
        let reason: String
    }

    /// Builds the encoder.
    ///
    /// - Parameters:
    ///   - vocabulary: ids by token.
    ///   - merges: pairs of tokens in the order they were learnt.
    ///   - unknown: id of what stands for a byte the vocabulary does not have.
    init(vocabulary: [String: Int], merges pairs: [(String, String)], unknown: Int) throws(Problem) {
        guard let maximum = vocabulary.values.max(), maximum <= Self.maximumID,
            vocabulary.values.allSatisfy({ $0 >= 0 })
        else {
            throw Problem(reason: "the vocabulary is empty or has ids outside 0 to \(Self.maximumID)")
        }
        var tokens = [String?](repeating: nil, count: maximum + 1)
        for (token, id) in vocabulary { tokens[id] = token }
        self.tokens = tokens

        let spellings = (0...UInt8.max).map { String(Self.spelling(of: $0)) }
        bytes = spellings.map { Int32(vocabulary[$0] ?? unknown) }
        finalBytes = spellings.map { Int32(vocabulary[$0 + Self.endOfWord] ?? unknown) }

        var merges: [UInt64: Merge] = [:]
        merges.reserveCapacity(pairs.count)
        for (rank, (left, right)) in pairs.enumerated() {
            guard let leftID = vocabulary[left], let rightID = vocabulary[right], let result = vocabulary[left + right]
            else {
                throw Problem(reason: "merge \(rank), \"\(left) \(right)\", makes tokens the vocabulary does not have")
            }
            // A pair listed again keeps its last rank, as in the reference.
            merges[Self.key(Int32(leftID), Int32(rightID))] = Merge(rank: UInt32(rank), result: Int32(result))
        }
        self.merges = merges
    }

    private static func key(_ left: Int32, _ right: Int32) -> UInt64 {
        UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
    }

    /// The character the vocabulary writes a byte as: itself if it is printable in Latin-1, else one from U+0100 on.
    static func spelling(of byte: UInt8) -> Unicode.Scalar {
        switch byte {
        case 0x21...0x7E, 0xA1...0xAC, 0xAE...0xFF: Unicode.Scalar(byte)
        case 0...0x20: spare(UInt32(byte))
        case 0x7F...0xA0: spare(UInt32(byte) - 0x7F + 33)
        default: spare(67)
        }
    }

    private static func spare(_ index: UInt32) -> Unicode.Scalar {
        // U+0100 to U+0143 are all characters.
        Unicode.Scalar(0x100 + index) ?? "\u{FFFD}"
    }

    /// The byte a character of the vocabulary stands for; nil for characters that stand for none.
    private static func byte(of scalar: Unicode.Scalar) -> UInt8? {
        bytesOfSpellings[scalar]
    }

    private static let bytesOfSpellings: [Unicode.Scalar: UInt8] =
        Dictionary(uniqueKeysWithValues: (0...UInt8.max).map { (spelling(of: $0), $0) })

    /// Appends the ids of one word.
    ///
    /// - Parameter word: the UTF-8 bytes of a word, not empty.
    func encode(_ word: some Collection<UInt8>, into ids: inout [Int]) {
        var symbols = word.map { bytes[Int($0)] }
        guard let last = word.dropFirst(word.count - 1).first else { return }
        symbols[symbols.count - 1] = finalBytes[Int(last)]
        merge(&symbols)
        for symbol in symbols { ids.append(Int(symbol)) }
    }

    /// Merges neighbours in order of rank, the leftmost first where ranks are equal.
    private func merge(_ symbols: inout [Int32]) {
        let count = symbols.count
        guard count > 1 else { return }
        // A doubly linked list over the positions; a merged-away symbol is marked with -1.
        var following = Array(1...count)
        var preceding = Array(-1..<(count - 1))
        var heap = MergeHeap()
        for position in 0..<(count - 1) {
            if let merge = merges[Self.key(symbols[position], symbols[position + 1])] {
                heap.push(rank: merge.rank, position: position)
            }
        }
        while let candidate = heap.pop() {
            let left = candidate.position
            let right = following[left]
            // The pair may have changed since it was pushed; then a later candidate stands for the new one.
            guard symbols[left] >= 0, right < count,
                let merge = merges[Self.key(symbols[left], symbols[right])], merge.rank == candidate.rank
            else { continue }
            symbols[left] = merge.result
            symbols[right] = -1
            following[left] = following[right]
            if following[left] < count {
                preceding[following[left]] = left
                if let next = merges[Self.key(merge.result, symbols[following[left]])] {
                    heap.push(rank: next.rank, position: left)
                }
            }
            let before = preceding[left]
            if before >= 0, let next = merges[Self.key(symbols[before], merge.result)] {
                heap.push(rank: next.rank, position: before)
            }
        }
        symbols.removeAll { $0 < 0 }
    }

    /// The text of ids, with a space between words.
    func decode(_ ids: some Sequence<Int>) -> String {
        var text: [UInt8] = []
        for id in ids {
            guard tokens.indices.contains(id), var token = tokens[id]?[...] else { continue }
            let ends = token.hasSuffix(Self.endOfWord)
            if ends { token = token.dropLast(Self.endOfWord.count) }
            for scalar in token.unicodeScalars {
                if let byte = Self.byte(of: scalar) {
                    text.append(byte)
                } else {
                    text.append(contentsOf: scalar.utf8)
                }
            }
            if ends { text.append(UInt8(ascii: " ")) }
        }
        while text.last == UInt8(ascii: " ") { text.removeLast() }
        return String(decoding: text, as: UTF8.self)
    }
}

/// A binary heap of merges that could be done: the lowest rank first, then the leftmost position.
private struct MergeHeap {
    private var keys: [UInt64] = []

    mutating func push(rank: UInt32, position: Int) {
        // Positions are below 2^32: no text of that length reaches a tokenizer.
        keys.append(UInt64(rank) << 32 | UInt64(UInt32(truncatingIfNeeded: position)))
        var child = keys.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard keys[child] < keys[parent] else { return }
            keys.swapAt(child, parent)
            child = parent
        }
    }

    mutating func pop() -> (rank: UInt32, position: Int)? {
        guard let top = keys.first, let last = keys.popLast() else { return nil }
        if !keys.isEmpty {
            keys[0] = last
            var parent = 0
            while true {
                var smallest = parent
                for child in [2 * parent + 1, 2 * parent + 2] where child < keys.count && keys[child] < keys[smallest] {
                    smallest = child
                }
                guard smallest != parent else { break }
                keys.swapAt(parent, smallest)
                parent = smallest
            }
        }
        return (UInt32(top >> 32), Int(top & 0xFFFF_FFFF))
    }
}
