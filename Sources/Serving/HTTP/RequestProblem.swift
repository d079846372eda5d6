// One thing wrong with a request, in the shape FastAPI gives it: clients read `loc`, `msg` and `type` of each element
// of the `detail` array of a 422.

internal import JSON

/// An element of a 422's `detail`.
struct RequestProblem: Error, Equatable {
    /// A step of the way to the place: a name, or a position.
    enum Step: Equatable {
        case name(String)
        case position(Int)
    }

    /// Machine-readable kind, one of pydantic's where it has one: `missing`, `int_parsing`, `less_than_equal`, ...
    let type: String
    /// Way to the place, from `body`.
    let location: [Step]
    /// What is wrong, for a person.
    let message: String
    /// What was sent, when that is known and short.
    let input: JSONValue?
    /// Limits that were passed, by pydantic's names.
    let context: JSONValue?

    init(type: String, at location: [Step], _ message: String, input: JSONValue? = nil, context: JSONValue? = nil) {
        self.type = type
        self.location = location
        self.message = message
        self.input = input
        self.context = context
    }

    /// A problem with one field of the body.
    init(type: String, field: String, _ message: String, input: JSONValue? = nil, context: JSONValue? = nil) {
        self.init(
            type: type,
            at: [.name("body"), .name(field)],
            message,
            input: input,
            context: context
        )
    }

    /// The same about a field of an object that is itself the field `name` of the body.
    func within(_ name: String) -> RequestProblem {
        RequestProblem(
            type: type,
            at: [.name("body"), .name(name)] + location.dropFirst(),
            message,
            input: input,
            context: context
        )
    }

    /// Longest input, in characters of JSON, that is sent back.
    private static let longestEcho = 1000

    /// The problem as JSON.
    var json: JSONValue {
        let steps: [JSONValue] = location.map {
            switch $0 {
            case .name(let name): .string(name)
            case .position(let position): JSONValue(position)
            }
        }
        var members: JSONObject = ["type": .string(type), "loc": .array(steps), "msg": .string(message)]
        if let input, input.serialized.utf8.count <= Self.longestEcho { members["input"] = input }
        members["ctx"] = context
        return .object(members)
    }
}

/// Everything wrong with a request.
struct RequestProblems: Error, Equatable {
    let problems: [RequestProblem]

    /// The body of the 422.
    var json: JSONValue { ["detail": .array(problems.map(\.json))] }
}
