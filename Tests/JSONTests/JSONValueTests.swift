// JSON values: numbers by their literal, members by name and in order, and text that reads back.

import JSON
import Testing

@Suite struct JSONValueTests {
    @Test(arguments: [
        ("-12", -12, -12.0), ("8.0", 8, 8), ("1.5e2", 150, 150), ("1.5", nil, 1.5), ("-0.0", 0, -0.0),
        ("9223372036854775807", .max, 0x1p63), ("9223372036854775808", nil, 0x1p63),
        ("-9223372036854775808", .min, -0x1p63), ("1e999", nil, .infinity), ("-Infinity", nil, -.infinity),
    ])
    func numbers(literal: String, integer: Int?, double: Double) {
        #expect(JSONValue.number(literal).integerValue == integer)
        #expect(JSONValue.number(literal).doubleValue == double)
    }

    @Test func numbersAreWrittenWithoutAFractionTheyDoNotHave() {
        let value: JSONValue = [7, 7.0, 7.5, 0.00085, -0.0, 1e300]
        #expect(value.serialized == "[7,7,7.5,0.00085,-0.0,1e+300]")
        #expect(JSONValue(UInt64.max) == .number("18446744073709551615"))
    }

    @Test func valuesOfAnotherKindAreNil() {
        #expect(JSONValue.null.integerValue == nil && JSONValue.string("1").doubleValue == nil)
        #expect(JSONValue.number("1").stringValue == nil && JSONValue.number("1").boolValue == nil)
        #expect(JSONValue.object([:]).arrayValue == nil && JSONValue.array([]).objectValue == nil)
        #expect(JSONValue.array(["a"])["a"] == nil)
    }

    /// Below and above the size from which there is a table of names.
    @Test(arguments: [3, 50])
    func membersAreFoundByNameAndKeepTheirOrder(count: Int) {
        var object = JSONObject()
        for index in 0..<count { object["name \(index)"] = JSONValue(index) }
        object["name 1"] = "changed"
        object["name 0"] = nil
        object["nobody"] = nil
        #expect(object.map(\.name) == (1..<count).map { "name \($0)" })
        #expect(object.count == count - 1 && !object.isEmpty)
        #expect(object["name 1"] == "changed" && object["name 2"] == 2 && object["name \(count - 1)"] != nil)
        #expect(object["name 0"] == nil && object["nobody"] == nil)
    }

    @Test func descriptionsFitAMessage() {
        #expect(JSONValue.number("1.50").description == "1.50")
        #expect((["a", 1, .null] as JSONValue).description == "[\"a\", 1, null]")
        #expect((["a": 1] as JSONValue).description == "an object with 1 members")
        #expect(JSONValue.string(String(repeating: "x", count: 1000)).description.count == 80)
    }

    @Test(arguments: ["[1,\"a\\\"\\\\\\n\\u0001\",{\"b\":null,\"é\":[true]}]", "{}", "1e5", "{\"b\":1,\"a\":2}"])
    func serializedTextReadsBack(text: String) throws {
        #expect(try JSONValue(parsing: Array(text.utf8)).serialized == text)
    }

    @Test func whatIsWrittenIsRead() throws {
        let text = String(String.UnicodeScalarView((0..<0x3000).compactMap { Unicode.Scalar($0) }))
        let value: JSONValue = [text: [.null, false, JSONValue(Int.min), 0.1, .string(text)]]
        #expect(try JSONValue(parsing: Array(value.serialized.utf8)) == value)
    }

    @Test func numbersThatJSONCannotSpellAreWrittenAsStrings() {
        #expect(JSONValue.array([.number("NaN"), .number("-Infinity")]).serialized == "[\"NaN\",\"-Infinity\"]")
    }
}
