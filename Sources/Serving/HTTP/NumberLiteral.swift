// Reads the numbers of a request exactly, in the forms the first implementation took: 50, 50.0, 5e1, "50", " 50 ".

/// Why a literal is no number of the wanted kind.
enum NumberLiteralError: Error, Equatable {
    /// It is no number.
    case malformed
    /// It has a fraction and should not.
    case fractional
    /// It is infinite or not a number.
    case notFinite
}

/// A whole number of any size, as sign and decimal digits.
struct WholeNumber: Equatable, Comparable {
    /// Whether it is below zero.
    let isNegative: Bool
    /// Decimal digits without leading zeros; empty for zero.
    ///
    /// Beyond 40 digits only "very large" is kept.
    let digits: [UInt8]

    /// The value of a JSON number literal.
    init(literal: String) throws(NumberLiteralError) {
        guard !literal.hasSuffix("N"), !literal.hasSuffix("y") else { throw .notFinite }
        var text = Substring(literal)
        isNegative = text.first == "-"
        if isNegative { text = text.dropFirst() }

        let parts = text.split(maxSplits: 1, omittingEmptySubsequences: false) { $0 == "e" || $0 == "E" }
        let mantissa = parts[0].split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)
        let fraction = mantissa.count > 1 ? Array(mantissa[1].utf8) : []
        var digits = Array(mantissa[0].utf8) + fraction
        guard !digits.isEmpty, digits.allSatisfy({ (0x30...0x39).contains($0) }) else { throw .malformed }
        digits = Array(digits.drop { $0 == 0x30 })
        guard !digits.isEmpty else {
            self.digits = []
            return
        }

        // An exponent too long for Int is as good as infinite in either direction.
        let exponentText = parts.count > 1 ? String(parts[1]) : "0"
        let exponent = Int(exponentText) ?? (exponentText.hasPrefix("-") ? Int.min / 2 : Int.max / 2)
        let shift = exponent - fraction.count
        if shift >= 0 {
            digits += Array(repeating: 0x30, count: min(shift, 40))
        } else {
            let cut = min(-shift, digits.count)
            guard -shift <= digits.count, digits.suffix(cut).allSatisfy({ $0 == 0x30 }) else { throw .fractional }
            digits.removeLast(cut)
        }
        self.digits = digits
    }

    /// The value of text: the same with spaces around and a sign in front, but without an exponent.
    init(text: String) throws(NumberLiteralError) {
        var trimmed = text.trimmedOfSpace
        if trimmed.first == "+" {
            trimmed = trimmed.dropFirst()
            guard trimmed.first != "-" else { throw .malformed }
        }
        guard trimmed.last?.isNumber == true, !trimmed.contains(where: { $0 == "e" || $0 == "E" }) else {
            throw .malformed
        }
        try self.init(literal: String(trimmed))
    }

    /// A machine integer.
    init(_ value: some BinaryInteger) {
        isNegative = value < 0
        digits = value == 0 ? [] : Array(String(value.magnitude).utf8)
    }

    /// The value as a signed integer, when it fits.
    var int: Int? { Int(description) }
    /// The value as a 64-bit unsigned integer, when it fits.
    var uint64: UInt64? { UInt64(description) }

    /// The number in decimal.
    var description: String {
        digits.isEmpty ? "0" : (isNegative ? "-" : "") + String(decoding: digits, as: UTF8.self)
    }

    /// Whether it can be divided by a small number without a rest.
    func isMultiple(of divisor: Int) -> Bool {
        digits.reduce(0) { ($0 * 10 + Int($1 - 0x30)) % divisor } == 0
    }

    static func < (left: WholeNumber, right: WholeNumber) -> Bool {
        if left.isNegative != right.isNegative { return left.isNegative }
        let isSmaller =
            left.digits.count == right.digits.count
            ? left.digits.lexicographicallyPrecedes(right.digits) : left.digits.count < right.digits.count
        return left.isNegative ? left != right && !isSmaller : isSmaller
    }
}

/// The value of a JSON number literal, or of text that holds one, as a finite Double.
func finiteDouble(literal: String) throws(NumberLiteralError) -> Double {
    let trimmed = literal.trimmedOfSpace
    let word = trimmed.lowercased().drop { $0 == "+" || $0 == "-" }
    if ["nan", "inf", "infinity"].contains(String(word)) { throw .notFinite }
    guard trimmed.allSatisfy({ "+-.0123456789eE".contains($0) }), let value = Double(trimmed) else { throw .malformed }
    guard value.isFinite else { throw .notFinite }
    return value
}

extension String {
    fileprivate var trimmedOfSpace: Substring {
        let spaces: Set<Character> = [" ", "\t", "\n", "\r", "\r\n"]
        var result = drop { spaces.contains($0) }
        while let last = result.last, spaces.contains(last) { result.removeLast() }
        return result
    }
}
