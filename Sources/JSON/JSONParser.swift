// Parses RFC 8259 JSON from bytes. Input comes from downloaded files and from clients, so every malformation is an
// error with its place, nesting is bounded, and nothing in here can trap. Places are those that Python's `json` module
// reports, which clients of the first implementation know.

/// What a text may have beyond RFC 8259.
package struct JSONExtensions: OptionSet, Sendable {
    package let rawValue: Int

    package init(rawValue: Int) {
        self.rawValue = rawValue
    }

    /// `NaN`, `Infinity`, `-Infinity`, and numbers beyond the range of a `Double`, so that a reader can refuse them by
    /// the name of their member.
    package static let nonFiniteNumbers = JSONExtensions(rawValue: 1)
    /// A member that appears twice in one object: the last value counts.
    ///
    /// Otherwise it is an error, because nobody can tell which one was meant.
    package static let repeatedNames = JSONExtensions(rawValue: 2)
}

extension JSONValue {
    /// Arrays and objects may be nested this deep.
    ///
    /// The parser recurses, so this bounds its stack.
    package static let maximumDepth = 100

    /// Parses a whole document in UTF-8: one value, surrounded by white space only.
    ///
    /// A byte order mark in front, as some editors write it, is skipped.
    package init(parsing bytes: UnsafeRawBufferPointer, accepting extensions: JSONExtensions = []) throws(JSONError) {
        var parser = JSONParser(bytes: bytes, extensions: extensions)
        do {
            self = try parser.document()
        } catch {
            // What is no text at all is reported as such, even where the first thing that does not fit is another.
            throw parser.invalidUTF8() ?? error
        }
    }

    /// Parses a whole document held in an array.
    package init(parsing bytes: [UInt8], accepting extensions: JSONExtensions = []) throws(JSONError) {
        let result = bytes.withUnsafeBytes { buffer in
            Result { () throws(JSONError) -> JSONValue in try JSONValue(parsing: buffer, accepting: extensions) }
        }
        self = try result.get()
    }
}

private struct JSONParser {
    private let bytes: UnsafeRawBufferPointer
    private let extensions: JSONExtensions
    private var index = 0
    private var depth = 0

    init(bytes: UnsafeRawBufferPointer, extensions: JSONExtensions) {
        self.bytes = bytes
        self.extensions = extensions
    }

    mutating func document() throws(JSONError) -> JSONValue {
        if bytes.starts(with: [0xEF, 0xBB, 0xBF]) { index = 3 }
        skipWhiteSpace()
        let value = try value()
        skipWhiteSpace()
        guard index == bytes.count else { throw error(.textAfterEnd, at: index) }
        return value
    }

    /// The error for the first byte that belongs to no UTF-8, if there is one.
    func invalidUTF8() -> JSONError? {
        var parser = Unicode.UTF8.ForwardParser()
        var iterator = bytes.makeIterator()
        var valid = 0
        while true {
            switch parser.parseScalar(from: &iterator) {
            case .valid(let scalar): valid += scalar.count
            case .emptyInput: return nil
            case .error: return error(.invalidUTF8, at: valid)
            }
        }
    }

    private func error(_ reason: JSONError.Reason, at offset: Int) -> JSONError {
        // Every byte but the continuations begins a scalar.
        JSONError(reason: reason, offset: offset, position: bytes[..<offset].count { $0 & 0xC0 != 0x80 })
    }

    private var current: UInt8? {
        index < bytes.count ? bytes[index] : nil
    }

    private mutating func skipWhiteSpace() {
        while index < bytes.count {
            switch bytes[index] {
            case 0x20, 0x09, 0x0A, 0x0D: index += 1
            default: return
            }
        }
    }

    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard let current, UInt32(current) == character.value else { return false }
        index += 1
        return true
    }

    private mutating func value() throws(JSONError) -> JSONValue {
        switch current {
        case UInt8(ascii: "{"): return try object()
        case UInt8(ascii: "["): return try array()
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        case UInt8(ascii: "N") where extensions.contains(.nonFiniteNumbers): return try word("NaN", .number("NaN"))
        case UInt8(ascii: "I") where extensions.contains(.nonFiniteNumbers):
            return try word("Infinity", .number("Infinity"))
        default: return try number()
        }
    }

    private mutating func word(_ text: StaticString, _ value: JSONValue) throws(JSONError) -> JSONValue {
        let count = text.utf8CodeUnitCount
        guard bytes.count - index >= count else { throw error(.expectedValue, at: index) }
        for offset in 0..<count where bytes[index + offset] != text.utf8Start[offset] {
            throw error(.expectedValue, at: index)
        }
        index += count
        return value
    }

    /// Takes an opening bracket.
    private mutating func open() throws(JSONError) {
        guard depth < JSONValue.maximumDepth else { throw error(.tooDeep, at: index) }
        depth += 1
        index += 1
        skipWhiteSpace()
    }

    private mutating func object() throws(JSONError) -> JSONValue {
        try open()
        defer { depth -= 1 }
        if take("}") { return .object([:]) }
        var members: [JSONObject.Member] = []
        var offsets: [Int] = []
        while true {
            guard current == UInt8(ascii: "\"") else { throw error(.expectedName, at: index) }
            offsets.append(index)
            let name = try string()
            skipWhiteSpace()
            guard take(":") else { throw error(.expectedColon, at: index) }
            skipWhiteSpace()
            members.append((name, try value()))
            skipWhiteSpace()
            if take("}") { break }
            guard take(",") else { throw error(.expectedComma, at: index) }
            skipWhiteSpace()
        }
        do {
            return .object(try JSONObject(distinct: members))
        } catch {
            guard extensions.contains(.repeatedNames) else {
                throw self.error(.repeatedName(members[error.index].name), at: offsets[error.index])
            }
            return .object(JSONObject(members))
        }
    }

    private mutating func array() throws(JSONError) -> JSONValue {
        try open()
        defer { depth -= 1 }
        if take("]") { return .array([]) }
        var elements: [JSONValue] = []
        while true {
            elements.append(try value())
            skipWhiteSpace()
            if take("]") { return .array(elements) }
            guard take(",") else { throw error(.expectedComma, at: index) }
            skipWhiteSpace()
        }
    }

    private mutating func string() throws(JSONError) -> String {
        let opening = index
        index += 1
        var text = try plainText()
        while true {
            guard let byte = current else { throw error(.unterminatedString, at: opening) }
            switch byte {
            case UInt8(ascii: "\""):
                index += 1
                return text
            case UInt8(ascii: "\\"):
                text.unicodeScalars.append(try escape(inStringFrom: opening))
                text += try plainText()
            default:
                throw error(.controlCharacter, at: index)
            }
        }
    }

    /// The part of a string up to its end, an escape or a character that may not be there.
    private mutating func plainText() throws(JSONError) -> String {
        let start = index
        while index < bytes.count {
            let byte = bytes[index]
            guard byte >= 0x20, byte != UInt8(ascii: "\""), byte != UInt8(ascii: "\\") else { break }
            index += 1
        }
        return try text(start..<index)
    }

    private func text(_ range: Range<Int>) throws(JSONError) -> String {
        guard let text = String(validating: UnsafeRawBufferPointer(rebasing: bytes[range]), as: UTF8.self) else {
            throw error(.invalidUTF8, at: range.lowerBound)
        }
        return text
    }

    private mutating func escape(inStringFrom opening: Int) throws(JSONError) -> Unicode.Scalar {
        let backslash = index
        index += 1
        guard let byte = current else { throw error(.unterminatedString, at: opening) }
        index += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return Unicode.Scalar(byte)
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{C}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"): break
        default: throw error(.unknownEscape, at: backslash)
        }
        var code = UInt32(try fourHexadecimalDigits())
        if UTF16.isLeadSurrogate(UInt16(code)) {
            guard take("\\"), take("u") else { throw error(.unpairedSurrogate, at: backslash) }
            let trail = try fourHexadecimalDigits()
            guard UTF16.isTrailSurrogate(trail) else { throw error(.unpairedSurrogate, at: backslash) }
            code = 0x10000 + (code - 0xD800) << 10 + (UInt32(trail) - 0xDC00)
        }
        guard let scalar = Unicode.Scalar(code) else { throw error(.unpairedSurrogate, at: backslash) }
        return scalar
    }

    private mutating func fourHexadecimalDigits() throws(JSONError) -> UInt16 {
        let start = index
        var value: UInt16 = 0
        for _ in 0..<4 {
            guard let byte = current, let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
                throw error(.malformedUnicodeEscape, at: start)
            }
            value = value << 4 | UInt16(digit)
            index += 1
        }
        return value
    }

    /// A number: sign, digits without a leading zero, fraction, exponent.
    ///
    /// What follows a complete number without being part of one is left for the caller to refuse.
    private mutating func number() throws(JSONError) -> JSONValue {
        let start = index
        let isNegative = take("-")
        if isNegative, current == UInt8(ascii: "I"), extensions.contains(.nonFiniteNumbers) {
            index = start
            return try word("-Infinity", .number("-Infinity"))
        }
        if !take("0") {
            guard takeDigits() else { throw error(.expectedValue, at: start) }
        }
        let afterInteger = index
        if take("."), !takeDigits() { index = afterInteger }
        let afterFraction = index
        if take("e") || take("E") {
            _ = take("+") || take("-")
            if !takeDigits() { index = afterFraction }
        }
        let literal = try text(start..<index)
        // Only an exponent, or more digits than the largest Double has, can lead out of its range.
        if index > afterFraction || index - start > 308,
            !extensions.contains(.nonFiniteNumbers), Double(literal)?.isFinite != true
        {
            throw error(.tooLarge, at: start)
        }
        return .number(literal)
    }

    private mutating func takeDigits() -> Bool {
        let start = index
        while let byte = current, UInt8(ascii: "0")...UInt8(ascii: "9") ~= byte { index += 1 }
        return index > start
    }
}
