// The only place where something that went wrong becomes a status code and a body. Bodies are those of the first
// implementation: `detail` is an array for a 422 and a sentence for everything else.

internal import HTTPTypes
internal import Hummingbird
internal import JSON
internal import StableDiffusion

/// An answer other than success: a status with a sentence.
struct HTTPProblem: Error {
    let status: HTTPResponse.Status
    let detail: String
    var headers: HTTPFields = [:]

    static let notFound = HTTPProblem(status: .notFound, detail: "Not Found")
    static let noSuchFile = HTTPProblem(status: .notFound, detail: "No such file")
    static let noSuchJob = HTTPProblem(status: .notFound, detail: "No such job")

    /// The route exists, for other methods.
    static func methodNotAllowed(_ allowed: [String]) -> HTTPProblem {
        HTTPProblem(
            status: .methodNotAllowed,
            detail: "Method Not Allowed",
            headers: [.allow: allowed.joined(separator: ", ")]
        )
    }
}

/// An error whose answer is the last thing said on its connection: what the client still sends is not read.
struct ConnectionClosingError: Error {
    let cause: any Error
}

extension Response {
    /// A JSON answer.
    init(status: HTTPResponse.Status = .ok, json: JSONValue, headers: HTTPFields = [:]) {
        var headers = headers
        headers[.contentType] = "application/json"
        self.init(status: status, headers: headers, body: .init(byteBuffer: ByteBuffer(string: json.serialized)))
    }

    /// The answer to something that went wrong; nil when it is a mistake of this program, which the caller logs.
    init?(problem error: any Error) {
        switch error {
        case let closing as ConnectionClosingError:
            self.init(problem: closing.cause)
            closeConnectionAfterBody()
        case let problem as HTTPProblem:
            self.init(status: problem.status, json: ["detail": .string(problem.detail)], headers: problem.headers)
        case let problems as RequestProblems:
            self.init(status: .unprocessableContent, json: problems.json)
        case let failure as JobFailure:
            self.init(failure)
        case let error as ImageStoreError:
            self.init(JobFailure.storage(error))
        case let error as HTTPError:
            self.init(status: error.status, json: ["detail": .string(error.body ?? error.status.reasonPhrase)])
        default:
            return nil
        }
    }

    /// Makes the server drop the connection once the body is written, which it does when the body's writer throws.
    private mutating func closeConnectionAfterBody() {
        let body = body
        headers[.connection] = "close"
        self.body = ResponseBody(contentLength: body.contentLength) { writer in
            try await body.write(writer)
            throw ConnectionClosed()
        }
    }

    /// Nobody catches this but the server.
    private struct ConnectionClosed: Error {}

    private init?(_ failure: JobFailure) {
        guard let answer = failure.answer else { return nil }
        var headers: HTTPFields = [:]
        if let seconds = answer.retryAfter { headers[.retryAfter] = String(seconds) }
        self.init(status: answer.status, json: answer.body, headers: headers)
    }
}

extension JobFailure {
    /// What a client is told; nil for a mistake of this program, which the caller logs.
    var answer: (status: HTTPResponse.Status, body: JSONValue, retryAfter: Int?)? {
        switch self {
        case .queueFull(let waiting, let seconds):
            Self.unavailable(
                "The queue is full: \(waiting) requests wait. Try again in about \(seconds) s.",
                retryAfter: seconds
            )
        case .loading:
            Self.unavailable("The model is still being loaded. Try again in a few seconds.", retryAfter: 5)
        case .shuttingDown: Self.unavailable("The service is shutting down.", retryAfter: 10)
        case .cancelled: Self.unavailable("The request was cancelled.")
        case .keyReused:
            (
                .unprocessableContent,
                ["detail": "The Idempotency-Key was used for another request; take a new one for each request."], nil
            )
        case .generation(.invalid(let field, let reason)): Self.invalid(field, reason)
        case .generation(.doesNotFit(let memory)) where memory.isPermanent:
            Self.invalid(memory.enlargedFrom == nil ? "width" : "hires", memory.description)
        case .model(let reason): Self.unavailable(reason)
        case .generation(let error): Self.unavailable(error.description)
        case .storage(let error) where error.isDiskFull:
            (.insufficientStorage, ["detail": .string(error.description)], nil)
        case .storage(let error): Self.unavailable(error.description)
        case .internal: nil
        }
    }

    private static func unavailable(_ detail: String, retryAfter seconds: Int? = nil)
        -> (HTTPResponse.Status, JSONValue, Int?)
    {
        (.serviceUnavailable, ["detail": .string(detail)], seconds)
    }

    private static func invalid(_ field: String, _ reason: String) -> (HTTPResponse.Status, JSONValue, Int?) {
        let problem = RequestProblem(type: "value_error", field: field, "Value error, \(reason)")
        return (.unprocessableContent, RequestProblems(problems: [problem]).json, nil)
    }
}

extension HTTPResponse.Status {
    /// 507, from WebDAV: the disk is full.
    fileprivate static var insufficientStorage: Self { .init(code: 507, reasonPhrase: "Insufficient Storage") }
}
