// What clients read about a body that is not JSON: the positions and words of Python's reader.

import JSON
import Testing

@testable import Serving

@Suite struct JSONErrorTests {
    /// What `POST /generate` says about a body.
    private func problem(_ body: [UInt8]) throws -> RequestProblem {
        let schema = GenerateSchema(configuration: Configuration(), nativeSize: 64)
        let error = try #require(throws: RequestProblems.self) { try schema.decode(body) }
        return try #require(error.problems.first)
    }

    /// Positions and reasons are those of `json.loads` in Python 3.11, which made this table.
    @Test(arguments: [
        (" ", 1, "Expecting value"), ("{", 1, "Expecting property name enclosed in double quotes"),
        ("{'a': 1}", 1, "Expecting property name enclosed in double quotes"),
        ("{\"a\" 1}", 5, "Expecting ':' delimiter"), ("{\"a\": 1", 7, "Expecting ',' delimiter"),
        ("{\"a\": }", 6, "Expecting value"), ("{\"a\": 1,}", 8, "Expecting property name enclosed in double quotes"),
        ("[1 2]", 3, "Expecting ',' delimiter"), ("{} {}", 3, "Extra data"), ("01", 1, "Extra data"),
        ("1.", 1, "Extra data"), ("1e", 1, "Extra data"), ("-", 0, "Expecting value"), ("+1", 0, "Expecting value"),
        ("tru", 0, "Expecting value"), ("\"a", 0, "Unterminated string starting at"),
        ("\"a\\", 0, "Unterminated string starting at"), ("\"é\nb\"", 2, "Invalid control character at"),
        ("\"\\x\"", 1, "Invalid \\escape"), ("\"\\u12g4\"", 3, "Invalid \\uXXXX escape"),
    ])
    func mistakesAreWordedAsInPython(text: String, position: Int, reason: String) throws {
        let problem = try problem(Array(text.utf8))
        #expect(problem.type == "json_invalid" && problem.location == [.name("body"), .position(position)])
        #expect(problem.context == ["error": .string(reason)])
    }

    @Test(arguments: [
        (Array("\"\\ud800\"".utf8), 1, "Unpaired surrogate"), (Array("\"é".utf8) + [0xFF, 0x22], 2, "Invalid UTF-8"),
        (Array(repeating: UInt8(ascii: "["), count: 1000), 100, "Nested more than 100 levels deep"),
    ])
    func whatOnlyThisReaderRefuses(body: [UInt8], position: Int, reason: String) throws {
        let problem = try problem(body)
        #expect(problem.location == [.name("body"), .position(position)])
        #expect(problem.context == ["error": .string(reason)])
    }

    /// Neither is JSON by the standard, and Python takes both.
    @Test func whatPythonTakesIsTaken() throws {
        let problem = try problem(Array("{\"prompt\": \"a\", \"scale\": 7, \"scale\": NaN}".utf8))
        #expect(problem.location == [.name("body"), .name("scale")] && problem.input == .number("NaN"))
    }
}
