// Reads one JSON configuration of a checkpoint, key by key. A key is always asked for with what is allowed, so that a
// model this program cannot compute is refused by file and key instead of being drawn wrongly.

internal import Glibc
internal import JSON

/// Why a configuration file of a checkpoint cannot be used.
package struct ConfigurationFileError: Error, Equatable, CustomStringConvertible {
    /// The file.
    package let file: String
    /// The key within the file; nil when the file as a whole is the problem.
    package let key: String?
    /// What was found, or what is wrong with the file.
    package let found: String
    /// What would be accepted; nil when nothing about the value itself can be changed.
    package let allowed: String?

    /// An error from its parts.
    package init(file: String, key: String? = nil, found: String, allowed: String? = nil) {
        self.file = file
        self.key = key
        self.found = found
        self.allowed = allowed
    }

    /// One sentence naming file, key, what was found and what is allowed.
    package var description: String {
        var text = file + ": "
        if let key { text += "\"\(key)\" is " }
        text += found
        if let allowed { text += "; allowed: \(allowed)" }
        return text
    }
}

/// The members of one configuration file, read with checks.
struct ConfigurationFile: Sendable {
    /// The path, for error messages.
    let path: String
    private var values: JSONObject

    /// Larger than any configuration that exists; a bigger file is not one.
    private static let maximumBytes = 16 << 20

    /// Reads and parses a file that must hold one JSON object.
    ///
    /// - Parameter nested: when the object has this member, and it is an object, its members are meant instead.
    init(path: String, nested: String? = nil) throws(ConfigurationFileError) {
        let bytes: [UInt8]
        do {
            bytes = try readFile(path, maximumBytes: Self.maximumBytes)
        } catch {
            throw ConfigurationFileError(file: path, found: error.reason)
        }
        let document: JSONValue
        do {
            // diffusers writes some defaults as Python's -Infinity.
            document = try JSONValue(parsing: bytes, accepting: [.nonFiniteNumbers])
        } catch {
            throw ConfigurationFileError(file: path, found: "the file is not valid JSON (\(error))")
        }
        guard let object = document.objectValue else {
            throw ConfigurationFileError(file: path, found: "the file holds \(document) instead of a JSON object")
        }
        self.init(path: path, values: nested.flatMap { object[$0]?.objectValue } ?? object)
    }

    /// A configuration already parsed; the path only names it.
    init(path: String, values: JSONObject) {
        self.path = path
        self.values = values
    }

    /// Replaces the value of a key by one that somebody knows better.
    mutating func replace(_ key: String, with value: JSONValue) {
        values[key] = value
    }

    /// The value of a key; nil when the key is missing or null.
    func value(_ key: String) -> JSONValue? {
        guard let value = values[key], value != .null else { return nil }
        return value
    }

    /// Whether the key is there with the value null, which for some keys of diffusers switches a part off.
    func isNull(_ key: String) -> Bool {
        values[key] == .null
    }

    /// The error for a key whose value cannot be used.
    func refusal(_ key: String, allowed: String) -> ConfigurationFileError {
        ConfigurationFileError(file: path, key: key, found: values[key]?.description ?? "missing", allowed: allowed)
    }

    /// Refuses the file unless a key is missing, null or one of the values this program computes.
    func require(_ key: String, oneOf allowed: JSONValue...) throws(ConfigurationFileError) {
        guard let value = value(key) else { return }
        for candidate in allowed where candidate == value { return }
        // 1 and 1.0 are the same number to the program that wrote the file.
        if let number = value.doubleValue, allowed.contains(where: { $0.doubleValue == number }) { return }
        let names = (allowed.isEmpty ? [JSONValue.null] : allowed).map(\.description)
        throw refusal(key, allowed: names.joined(separator: ", ") + " (this program computes nothing else)")
    }

    /// An integer within a range.
    func integer(
        _ key: String,
        default fallback: Int?,
        in range: ClosedRange<Int>
    ) throws(ConfigurationFileError) -> Int {
        let allowed = "an integer from \(range.lowerBound) to \(range.upperBound)"
        guard let value = values[key] else {
            guard let fallback else { throw refusal(key, allowed: allowed) }
            return fallback
        }
        guard let integer = value.integerValue, range.contains(integer) else { throw refusal(key, allowed: allowed) }
        return integer
    }

    /// An integer within a range, or nil when missing or null.
    func optionalInteger(_ key: String, in range: ClosedRange<Int>) throws(ConfigurationFileError) -> Int? {
        guard value(key) != nil else { return nil }
        return try integer(key, default: nil, in: range)
    }

    /// A number within a range.
    func number(
        _ key: String,
        default fallback: Double,
        in range: ClosedRange<Double>
    ) throws(ConfigurationFileError) -> Double {
        guard let value = values[key] else { return fallback }
        guard let number = value.doubleValue, range.contains(number) else {
            throw refusal(key, allowed: "a number from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    /// A truth value.
    func bool(_ key: String, default fallback: Bool) throws(ConfigurationFileError) -> Bool {
        guard let value = values[key] else { return fallback }
        guard let bool = value.boolValue else { throw refusal(key, allowed: "true, false") }
        return bool
    }

    /// A truth value, or nil when missing or null.
    func optionalBool(_ key: String) throws(ConfigurationFileError) -> Bool? {
        value(key) == nil ? nil : try bool(key, default: false)
    }

    /// One of the names of an enumeration.
    func choice<Choice: RawRepresentable & CaseIterable>(
        _ key: String,
        default fallback: Choice
    ) throws(ConfigurationFileError) -> Choice where Choice.RawValue == String {
        guard let value = values[key] else { return fallback }
        guard let choice = value.stringValue.flatMap(Choice.init(rawValue:)) else {
            throw refusal(key, allowed: Choice.allNames)
        }
        return choice
    }

    /// A list of names of an enumeration.
    func choices<Choice: RawRepresentable & CaseIterable>(
        _ key: String,
        default fallback: [Choice]
    ) throws(ConfigurationFileError) -> [Choice] where Choice.RawValue == String {
        guard let value = values[key] else { return fallback }
        let choices = value.arrayValue?.map { $0.stringValue.flatMap(Choice.init(rawValue:)) }
        guard let choices, !choices.isEmpty, !choices.contains(where: { $0 == nil }) else {
            throw refusal(key, allowed: "a list of " + Choice.allNames)
        }
        return choices.compactMap(\.self)
    }

    /// A list of integers within a range.
    func integers(
        _ key: String,
        default fallback: [Int],
        in range: ClosedRange<Int>
    ) throws(ConfigurationFileError) -> [Int] {
        guard let value = values[key] else { return fallback }
        let integers = value.arrayValue?.map(\.integerValue)
        guard let integers, !integers.isEmpty,
            integers.allSatisfy({ $0.map(range.contains) ?? false })
        else {
            throw refusal(key, allowed: "a list of integers from \(range.lowerBound) to \(range.upperBound)")
        }
        return integers.compactMap(\.self)
    }

    /// One integer for all levels, or a list with one for each level.
    func integerPerLevel(
        _ key: String,
        default fallback: Int,
        levels: Int,
        in range: ClosedRange<Int>
    ) throws(ConfigurationFileError) -> [Int] {
        if let list = value(key)?.arrayValue {
            guard list.count == levels else { throw refusal(key, allowed: "a list of \(levels), one for each level") }
            return try integers(key, default: [], in: range)
        }
        return Array(repeating: try integer(key, default: fallback, in: range), count: levels)
    }

    /// A size given as one integer or as `[height, width]`; the larger one is returned.
    func squareSize(_ key: String, default fallback: Int, in range: ClosedRange<Int>) throws(ConfigurationFileError)
        -> Int
    {
        guard let value = value(key) else { return fallback }
        guard value.arrayValue != nil else { return try integer(key, default: fallback, in: range) }
        let sides = try integers(key, default: [], in: range)
        guard sides.count == 2 else { throw refusal(key, allowed: "an integer, or a list of height and width") }
        return max(sides[0], sides[1])
    }
}

extension RawRepresentable where Self: CaseIterable, RawValue == String {
    fileprivate static var allNames: String {
        allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ", ")
    }
}
