// Unicode normalisation form C (Unicode Standard Annex 15) as the reference tokenizer computes it. Not Foundation's,
// for two reasons: the reference normalises by the data of Unicode 9 and leaves younger marks where they stand, and
// Foundation on Linux does not join a Hangul syllable with a final consonant that follows it.

/// Canonical decomposition and composition.
struct CanonicalComposition: Sendable {
    /// The data, read once.
    static let unicode9 = CanonicalComposition()

    private let decompositions: [UInt32: [UInt32]]
    private let compositions: [UInt64: UInt32]

    private init() {
        var decompositions: [UInt32: [UInt32]] = [:]
        var compositions: [UInt64: UInt32] = [:]
        func numbers(_ text: String) -> [UInt32] {
            text.split(separator: " ").compactMap { UInt32($0, radix: 16) }
        }
        let pairs = numbers(CanonicalCompositionData.compositions)
        for start in stride(from: 0, to: pairs.count - 2, by: 3) {
            decompositions[pairs[start]] = [pairs[start + 1], pairs[start + 2]]
            compositions[Self.key(pairs[start + 1], pairs[start + 2])] = pairs[start]
        }
        let excluded = numbers(CanonicalCompositionData.exclusions)
        for start in stride(from: 0, to: excluded.count - 2, by: 3) {
            decompositions[excluded[start]] = [excluded[start + 1], excluded[start + 2]]
        }
        let single = numbers(CanonicalCompositionData.singletons)
        for start in stride(from: 0, to: single.count - 1, by: 2) {
            decompositions[single[start]] = [single[start + 1]]
        }
        self.decompositions = decompositions
        self.compositions = compositions
    }

    private static func key(_ first: UInt32, _ second: UInt32) -> UInt64 {
        UInt64(first) << 32 | UInt64(second)
    }

    /// The normal form of a text.
    func normalize(_ text: some Sequence<Unicode.Scalar>) -> [Unicode.Scalar] {
        var scalars: [UInt32] = []
        for scalar in text { decompose(scalar.value, into: &scalars) }
        // No mark and nothing that composes lies below U+0300.
        guard scalars.contains(where: { $0 >= 0x300 }) else { return scalars.compactMap(Unicode.Scalar.init) }
        let classes = scalars.map(Self.combiningClass)
        return compose(Self.ordered(scalars, classes))
    }

    private func decompose(_ scalar: UInt32, into output: inout [UInt32]) {
        if scalar < 0xC0 {
            output.append(scalar)
        } else if let parts = decompositions[scalar] {
            for part in parts { decompose(part, into: &output) }
        } else if let syllable = Hangul.decompose(scalar) {
            output += syllable
        } else {
            output.append(scalar)
        }
    }

    private static func combiningClass(_ scalar: UInt32) -> UInt8 {
        guard scalar >= 0x300, let properties = Unicode.Scalar(scalar)?.properties,
            let age = properties.age, age.major <= 9
        else { return 0 }
        return properties.canonicalCombiningClass.rawValue
    }

    /// Sorts each run of marks by class, leaving those of one class in their order.
    private static func ordered(_ scalars: [UInt32], _ classes: [UInt8]) -> [(scalar: UInt32, mark: UInt8)] {
        var result: [(scalar: UInt32, mark: UInt8)] = []
        result.reserveCapacity(scalars.count)
        var start = 0
        while start < scalars.count {
            guard classes[start] != 0 else {
                result.append((scalars[start], 0))
                start += 1
                continue
            }
            var end = start + 1
            while end < scalars.count, classes[end] != 0 { end += 1 }
            // `sort` does not promise to be stable, hence the positions.
            let order = (start..<end).sorted { (classes[$0], $0) < (classes[$1], $1) }
            result += order.map { (scalars[$0], classes[$0]) }
            start = end
        }
        return result
    }

    private func compose(_ scalars: [(scalar: UInt32, mark: UInt8)]) -> [Unicode.Scalar] {
        var result: [UInt32] = []
        var starter: Int?
        // Class of the last mark kept after the starter; nil directly after it.
        var blocking: UInt8?
        for (scalar, mark) in scalars {
            if let starter, blocking.map({ $0 < mark }) ?? true,
                let composed = composition(result[starter], scalar)
            {
                result[starter] = composed
                continue
            }
            if mark == 0 {
                starter = result.count
                blocking = nil
            } else {
                blocking = mark
            }
            result.append(scalar)
        }
        return result.compactMap(Unicode.Scalar.init)
    }

    private func composition(_ first: UInt32, _ second: UInt32) -> UInt32? {
        Hangul.compose(first, second) ?? compositions[Self.key(first, second)]
    }
}

/// Hangul syllables, which are composed by arithmetic (The Unicode Standard, section 3.12).
private enum Hangul {
    private static let syllables: UInt32 = 0xAC00
    private static let initials: UInt32 = 0x1100
    private static let vowels: UInt32 = 0x1161
    private static let finals: UInt32 = 0x11A7
    private static let initialCount: UInt32 = 19
    private static let vowelCount: UInt32 = 21
    private static let finalCount: UInt32 = 28

    static func decompose(_ scalar: UInt32) -> [UInt32]? {
        guard scalar >= syllables, scalar < syllables + initialCount * vowelCount * finalCount else { return nil }
        let index = scalar - syllables
        let parts = [initials + index / (vowelCount * finalCount), vowels + index / finalCount % vowelCount]
        return index % finalCount == 0 ? parts : parts + [finals + index % finalCount]
    }

    static func compose(_ first: UInt32, _ second: UInt32) -> UInt32? {
        if initials..<(initials + initialCount) ~= first, vowels..<(vowels + vowelCount) ~= second {
            return syllables + ((first - initials) * vowelCount + second - vowels) * finalCount
        }
        if syllables..<(syllables + initialCount * vowelCount * finalCount) ~= first,
            (first - syllables).isMultiple(of: finalCount), (finals + 1)..<(finals + finalCount) ~= second
        {
            return first + second - finals
        }
        return nil
    }
}
