// Words mistakes in a request's JSON as Python's `json` module does, which clients of the first implementation know.

internal import JSON

extension JSONError.Reason {
    /// The message of Python's `JSONDecodeError`; where Python accepts what is refused here, one in its manner.
    var pythonWords: String {
        switch self {
        case .expectedValue: "Expecting value"
        case .expectedName: "Expecting property name enclosed in double quotes"
        case .expectedColon: "Expecting ':' delimiter"
        case .expectedComma: "Expecting ',' delimiter"
        case .textAfterEnd: "Extra data"
        case .unterminatedString: "Unterminated string starting at"
        case .controlCharacter: "Invalid control character at"
        case .unknownEscape: "Invalid \\escape"
        case .malformedUnicodeEscape: "Invalid \\uXXXX escape"
        case .unpairedSurrogate: "Unpaired surrogate"
        case .invalidUTF8: "Invalid UTF-8"
        case .tooDeep: "Nested more than \(JSONValue.maximumDepth) levels deep"
        case .repeatedName: "Repeated property name"
        case .tooLarge: "Number out of range"
        }
    }
}
