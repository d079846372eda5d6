// Numbers of requests: read exactly, in every form the first implementation took.

import Testing

@testable import Serving

@Suite struct NumberLiteralTests {
    @Test(arguments: [
        ("50", "50"), ("50.0", "50"), ("5e1", "50"), ("0.5E2", "50"), ("500e-1", "50"), ("-0", "0"), ("-7", "-7"),
        ("1e3", "1000"), ("1.8446744073709551615e19", "18446744073709551615"), ("0e999999999999999999999", "0"),
        ("0.0", "0"),
    ])
    func wholeNumbers(literal: String, value: String) throws {
        #expect(try WholeNumber(literal: literal).description == value)
    }

    @Test(arguments: [
        ("1.5", NumberLiteralError.fractional), ("1e-1", .fractional), ("1e-99999999999999999999", .fractional),
        ("NaN", .notFinite), ("-Infinity", .notFinite),
    ])
    func notWhole(literal: String, error: NumberLiteralError) {
        #expect(throws: error) { try WholeNumber(literal: literal) }
    }

    @Test(arguments: ["50", " 50 ", "+50", "50.0", "\t50\n"])
    func wholeNumbersInText(text: String) throws {
        #expect(try WholeNumber(text: text).int == 50)
    }

    @Test(arguments: ["", " ", "abc", "1e2", "5 0", "0x10", "５", "--5", "+-5", "50.", "inf", "nan"])
    func noNumbersInText(text: String) {
        #expect(throws: NumberLiteralError.malformed) { try WholeNumber(text: text) }
    }

    @Test func order() throws {
        let ordered = [
            "-1e400", "-9223372036854775809", "-9223372036854775808", "-10", "-9", "0", "9", "10",
            "18446744073709551615", "18446744073709551616", "1e999999999999999999999",
        ]
        let numbers = try ordered.map { try WholeNumber(literal: $0) }
        for (i, left) in numbers.enumerated() {
            for (j, right) in numbers.enumerated() {
                #expect((left < right) == (i < j))
            }
        }
        #expect(WholeNumber(Int64.min).description == "-9223372036854775808")
        #expect(WholeNumber(UInt64.max).description == "18446744073709551615")
    }

    @Test(arguments: [("7.5", 7.5), (" 7.5 ", 7.5), ("-1e2", -100), ("0", 0), (".5", 0.5)])
    func finiteNumbers(literal: String, value: Double) throws {
        #expect(try finiteDouble(literal: literal) == value)
    }

    @Test(arguments: [
        ("NaN", NumberLiteralError.notFinite), ("nan", .notFinite), ("-inf", .notFinite), ("1e999", .notFinite),
        ("Infinity", .notFinite), ("x", .malformed), ("", .malformed), ("0x10", .malformed), ("1..2", .malformed),
    ])
    func notFinite(literal: String, error: NumberLiteralError) {
        #expect(throws: error) { try finiteDouble(literal: literal) }
    }
}
