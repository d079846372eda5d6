// Reads a request's body into memory up to a limit and within a time, whatever the client does.

internal import HTTPTypes
internal import Hummingbird
internal import JSON

/// Limits of reading a body.
struct RequestBodyReader: Sendable {
    /// Largest body that is accepted, in bytes.
    let limit: Int
    /// Longest time from head to end of body.
    ///
    /// A client that sends nothing at all is cut off earlier, by the connection.
    var deadline: Duration = .seconds(60)

    /// What a body that is too large may still send, so that its client comes to read the answer, in bytes.
    private static let discardLimit = 64 << 20

    /// The body.
    ///
    /// - Throws: `RequestProblems` when it is too large, `HTTPProblem` when it breaks off, either inside a
    ///   `ConnectionClosingError` when reading on would only serve to keep the daemon busy.
    func read(_ request: Request) async throws -> [UInt8] {
        try await read(request.body, of: request)
    }

    /// The same, of a body that was taken from its request.
    func read(_ body: RequestBody, of request: Request) async throws -> [UInt8] {
        let announced = request.headers[.contentLength].flatMap { Int($0) } ?? 0
        if announced > Self.discardLimit { throw ConnectionClosingError(cause: tooLarge) }
        // A client that asks before sending waits for this answer.
        if announced > limit, request.headers[.expect] != nil { throw tooLarge }
        let start = ContinuousClock.now
        var bytes: [UInt8] = []
        var count = 0
        bytes.reserveCapacity(min(announced, limit))
        do {
            for try await chunk in body {
                count += chunk.readableBytes
                if count <= limit { bytes.append(contentsOf: chunk.readableBytesView) }
                guard count <= Self.discardLimit else { throw ConnectionClosingError(cause: tooLarge) }
                guard ContinuousClock.now - start < deadline else { throw ConnectionClosingError(cause: tooSlow) }
            }
        } catch let error as ConnectionClosingError {
            throw error
        } catch {
            throw HTTPProblem(status: .badRequest, detail: "The request body broke off.")
        }
        guard count <= limit else { throw tooLarge }
        return bytes
    }

    private var tooLarge: RequestProblems {
        RequestProblems(
            problems: [
                RequestProblem(
                    type: "body_too_large",
                    at: [.name("body")],
                    "The body should have at most \(limit) bytes",
                    context: ["max_bytes": JSONValue(limit)]
                )
            ]
        )
    }

    private var tooSlow: HTTPProblem {
        HTTPProblem(
            status: .requestTimeout,
            detail: "The request body took more than \(deadline.components.seconds) seconds."
        )
    }
}
