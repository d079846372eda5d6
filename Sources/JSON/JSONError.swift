// What is wrong with a text that is not JSON, and where. Readers of files print the description; the HTTP interface
// words the same reasons for its clients.

/// Why a text is not JSON.
package struct JSONError: Error, Equatable, CustomStringConvertible {
    /// What does not fit.
    package enum Reason: Equatable, Sendable {
        case expectedValue
        case expectedName
        case expectedColon
        /// After a value there is neither a comma nor the end of its array or object.
        case expectedComma
        case textAfterEnd
        /// The offset is that of the opening quote.
        case unterminatedString
        case controlCharacter
        case unknownEscape
        /// `\u` without four hexadecimal digits; the offset is that of the first digit.
        case malformedUnicodeEscape
        case unpairedSurrogate
        case invalidUTF8
        /// Arrays and objects are nested deeper than `JSONValue.maximumDepth`.
        case tooDeep
        case repeatedName(String)
        /// A number beyond the range of a `Double`.
        case tooLarge
    }

    /// What is wrong.
    package let reason: Reason
    /// Offset of the first byte that does not fit.
    package let offset: Int
    /// The same place, counted in Unicode scalars from 0.
    package let position: Int

    /// One sentence with the offset.
    package var description: String { "\(words) at byte \(offset)" }

    private var words: String {
        switch reason {
        case .expectedValue: "expected a value"
        case .expectedName: "expected a member name in quotes"
        case .expectedColon: "expected ':'"
        case .expectedComma: "expected ',' or the closing bracket"
        case .textAfterEnd: "unexpected text after the end of the document"
        case .unterminatedString: "a string without its closing quote"
        case .controlCharacter: "a control character in a string"
        case .unknownEscape: "an unknown escape in a string"
        case .malformedUnicodeEscape: "expected four hexadecimal digits"
        case .unpairedSurrogate: "half of a surrogate pair in a string"
        case .invalidUTF8: "text that is not UTF-8"
        case .tooDeep: "nesting deeper than \(JSONValue.maximumDepth) levels"
        case .repeatedName(let name): "member \"\(name.prefix(80))\" appears twice"
        case .tooLarge: "a number too large to represent"
        }
    }
}
