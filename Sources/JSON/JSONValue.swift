// A JSON document as a value: the configurations, headers and vocabularies of a checkpoint, the requests of clients and
// the answers to them. Members keep their order, and numbers the text they were written in, so that a 64-bit seed never
// passes through a Double and an error can show people their own words.

/// One JSON value.
package enum JSONValue: Sendable, Equatable {
    case null
    case bool(Bool)
    /// A number by its literal in the grammar of JSON; `NaN`, `Infinity` and `-Infinity` besides, where accepted.
    ///
    /// Equal is what is written equally: 1 and 1.0 differ.
    case number(String)
    case string(String)
    case array([JSONValue])
    case object(JSONObject)

    /// A whole number.
    package init(_ value: some BinaryInteger) { self = .number(String(value)) }

    /// A finite number, without a fraction it does not have: 7 and 7.5.
    package init(_ value: Double) {
        self = .number(
            value == value.rounded() && abs(value) < 1e15 && !value.isNegativeZero
                ? String(Int64(value)) : String(value)
        )
    }

    /// The integer, also when it was written with a zero fraction such as `8.0`.
    ///
    /// `Int(literal)` of a number is the integer only when it was written as one.
    package var integerValue: Int? {
        guard case .number(let literal) = self else { return nil }
        return Int(literal) ?? Double(literal).flatMap { Int(exactly: $0) }
    }

    /// The number, whichever way it was written, rounded to the nearest that can be represented.
    package var doubleValue: Double? {
        guard case .number(let literal) = self else { return nil }
        return Double(literal)
    }

    /// The text of a string.
    package var stringValue: String? {
        guard case .string(let value) = self else { return nil }
        return value
    }

    /// The truth value.
    package var boolValue: Bool? {
        guard case .bool(let value) = self else { return nil }
        return value
    }

    /// The elements of an array.
    package var arrayValue: [JSONValue]? {
        guard case .array(let value) = self else { return nil }
        return value
    }

    /// The members of an object.
    package var objectValue: JSONObject? {
        guard case .object(let value) = self else { return nil }
        return value
    }

    /// The member of an object; nil when there is none or this is no object.
    package subscript(name: String) -> JSONValue? {
        guard case .object(let members) = self else { return nil }
        return members[name]
    }
}

extension Double {
    /// A zero that would lose its sign as an integer.
    fileprivate var isNegativeZero: Bool { self == 0 && sign == .minus }
}

extension JSONValue: CustomStringConvertible {
    /// The value as it would be written, cut to a length that fits an error message.
    package var description: String {
        let text = written
        return text.count <= 80 ? text : text.prefix(77) + "..."
    }

    private var written: String {
        switch self {
        case .null: "null"
        case .bool(let value): value ? "true" : "false"
        case .number(let literal): literal
        case .string(let value): "\"\(value.prefix(80))\""
        case .array(let values): "[" + values.prefix(20).map(\.description).joined(separator: ", ") + "]"
        case .object(let members): "an object with \(members.count) members"
        }
    }
}

extension JSONValue: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral,
    ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral, ExpressibleByFloatLiteral
{
    package init(stringLiteral value: String) { self = .string(value) }
    package init(integerLiteral value: Int) { self.init(value) }
    package init(floatLiteral value: Double) { self.init(value) }
    package init(booleanLiteral value: Bool) { self = .bool(value) }
    package init(arrayLiteral elements: JSONValue...) { self = .array(elements) }
    package init(dictionaryLiteral elements: (String, JSONValue)...) {
        self = .object(JSONObject(elements.map { (name: $0.0, value: $0.1) }))
    }
}
