// The JSON parser: what it accepts, what it refuses and where, and that nothing it is given can trap.

import JSON
import Testing

private func parse(_ text: String, accepting extensions: JSONExtensions = []) throws(JSONError) -> JSONValue {
    try JSONValue(parsing: Array(text.utf8), accepting: extensions)
}

@Suite struct JSONParserTests {
    @Test(
        arguments: [
            ("null", .null), (" true\n", .bool(true)), ("false", .bool(false)), ("-12", .number("-12")),
            ("0", .number("0")), ("-0", .number("-0")), ("1.5e2", .number("1.5e2")), ("1.50E+3", .number("1.50E+3")),
            ("8.0", .number("8.0")), ("18446744073709551616", .number("18446744073709551616")),
            (#""a\"\\\/\b\f\n\r\té😀""#, .string("a\"\\/\u{8}\u{C}\n\r\t\u{E9}\u{1F600}")),
            (#""a\n\u0041\/\ud83d\ude00é""#, .string("a\nA/😀é")), (#""\u00E9\u00e9""#, .string("éé")),
            ("\"日本\"", .string("日本")), ("\"\"", .string("")), ("\"\\u0000\"", .string("\0")),
            ("[]", .array([])),
            ("[1, [2]]", [1, [2]]), ("{}", .object([:])),
            (#"{"a": 1, "b": {"c": null}}"#, ["a": 1, "b": ["c": .null]]),
            ("\u{FEFF}{}", .object([:])),
        ] as [(String, JSONValue)]
    )
    func parses(text: String, value: JSONValue) throws {
        #expect(try parse(text) == value)
    }

    /// Offsets count bytes and positions scalars; both from 0.
    @Test(
        arguments: [
            ("", 0, .expectedValue), (" ", 1, .expectedValue), ("}", 0, .expectedValue), ("{", 1, .expectedName),
            ("{a: 1}", 1, .expectedName), ("{\"a\"}", 4, .expectedColon), ("{\"a\" 1}", 5, .expectedColon),
            ("{\"a\": 1", 7, .expectedComma), ("{\"a\": 1 \"b\": 2}", 8, .expectedComma),
            ("{\"a\": 1,}", 8, .expectedName), ("{\"a\": tru}", 6, .expectedValue), ("{\"a\": }", 6, .expectedValue),
            ("[1,]", 3, .expectedValue), ("[1 2]", 3, .expectedComma), ("1 2", 2, .textAfterEnd),
            ("{} {}", 3, .textAfterEnd), ("truee", 4, .textAfterEnd), ("nul", 0, .expectedValue),
            ("'a'", 0, .expectedValue), ("01", 1, .textAfterEnd), ("[01]", 2, .expectedComma), ("1.", 1, .textAfterEnd),
            ("1e", 1, .textAfterEnd), ("1.5e+", 3, .textAfterEnd), (".5", 0, .expectedValue), ("-", 0, .expectedValue),
            ("+1", 0, .expectedValue), ("1e999", 0, .tooLarge), ("[-1e400]", 1, .tooLarge),
            ("NaN", 0, .expectedValue), ("Infinity", 0, .expectedValue), ("-Infinity", 0, .expectedValue),
            ("\"", 0, .unterminatedString), ("[\"a\\", 1, .unterminatedString), ("\"a\nb\"", 2, .controlCharacter),
            ("\"\\x\"", 1, .unknownEscape), ("\"\\u12\"", 3, .malformedUnicodeEscape),
            ("\"\\ud800\"", 1, .unpairedSurrogate), ("\"\\udc00\"", 1, .unpairedSurrogate),
            ("\"\\ud800\\u0041\"", 1, .unpairedSurrogate), ("\"\\ud800x\"", 1, .unpairedSurrogate),
            ("{\"a\": 1, \"a\": 2}", 9, .repeatedName("a")),
        ] as [(String, Int, JSONError.Reason)]
    )
    func refuses(text: String, offset: Int, reason: JSONError.Reason) throws {
        let error = try #require(throws: JSONError.self) { try parse(text) }
        #expect(error.reason == reason)
        #expect(error.offset == offset && error.position == offset)
    }

    @Test func offsetsAndPositionsDifferAfterOtherThanASCII() throws {
        let error = try #require(throws: JSONError.self) { try parse("[\"é😀\", x]") }
        #expect(error.offset == 11 && error.position == 7 && error.description == "expected a value at byte 11")
    }

    /// Wherever the first thing that does not fit is.
    @Test(arguments: [
        ([0x22, 0xC3, 0x28, 0x22], 1, 1), ([0x22, 0x5C, 0x6E, 0xFF, 0x22], 3, 3),
        ([0x22, 0xC3, 0xA9, 0xFF, 0x22], 3, 2),
        ([0x78, 0x20, 0xFF], 2, 2), ([0xFF], 0, 0), ([0x22, 0xE2, 0x82], 1, 1),
    ])
    func refusesWhatIsNotUTF8(bytes: [UInt8], offset: Int, position: Int) throws {
        let error = try #require(throws: JSONError.self) { try JSONValue(parsing: bytes) }
        #expect(error.reason == .invalidUTF8)
        #expect(error.offset == offset && error.position == position)
    }

    @Test func nestingIsBounded() throws {
        let depth = JSONValue.maximumDepth
        _ = try parse(String(repeating: "[", count: depth) + String(repeating: "]", count: depth))
        for opening in ["[", "{\"a\":"] {
            let error = try #require(throws: JSONError.self) { try parse(String(repeating: opening, count: 100_000)) }
            #expect(error.reason == .tooDeep && error.offset == depth * opening.utf8.count)
        }
    }

    @Test(arguments: ["NaN", "Infinity", "-Infinity", "1e999", "-1e400", String(repeating: "9", count: 400)])
    func nonFiniteNumbersAreAnExtension(literal: String) throws {
        #expect(try parse(literal, accepting: .nonFiniteNumbers) == .number(literal))
        #expect(throws: JSONError.self) { try parse(literal, accepting: .repeatedNames) }
    }

    /// In small objects and in those with a table of names.
    @Test(arguments: [0, 20])
    func repeatedNamesAreAnExtension(others: Int) throws {
        let rest = (0..<others).map { ", \"\($0)\": \($0)" }.joined()
        let text = "{\"a\": 1, \"b\": null\(rest), \"a\": 2}"
        let object = try #require(try parse(text, accepting: .repeatedNames).objectValue)
        #expect(object.map(\.name) == ["a", "b"] + (0..<others).map { "\($0)" })
        #expect(object["a"] == 2 && object["b"] == .null)
        let error = try #require(throws: JSONError.self) { try parse(text, accepting: .nonFiniteNumbers) }
        #expect(error.reason == .repeatedName("a") && error.offset == text.utf8.count - 7)
        #expect(error.description.contains("\"a\""))
    }
}
