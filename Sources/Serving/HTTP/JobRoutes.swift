// Jobs: asked for without waiting, looked at, watched and cancelled.

internal import Crypto
internal import Foundation
internal import HTTPTypes
internal import Hummingbird
internal import JSON
internal import NIOCore
internal import StableDiffusion

extension HTTPField.Name {
    static let jobID = HTTPField.Name("X-Job-Id")
    static let idempotencyKey = HTTPField.Name("Idempotency-Key")
    static let lastEventID = HTTPField.Name("Last-Event-ID")
}

extension Daemon {
    /// Everything below `/jobs`.
    var jobRoutes: [Route] { [submitRoute, listRoute, jobRoute, cancelRoute, eventsRoute] }

    /// The most jobs of one answer.
    private static let longestPage = 200
    /// Seconds after which a line says that the connection is alive, where nothing else does: less than proxies wait.
    private static let heartbeat = Duration.seconds(15)

    /// Reads a request for pictures and queues it.
    ///
    /// - Throws: What is wrong with it, or why it is refused.
    ///
    /// - Parameter body: Where it was taken from the request; nil for the request's own.
    func admit(_ request: Request, _ body: RequestBody? = nil) async throws -> JobRecord {
        let reader = RequestBodyReader(limit: configuration.limits.bodyBytes)
        let bytes = try await reader.read(body ?? request.body, of: request)
        let order = try generateSchema.decode(bytes)
        return try await queue.enqueue(order.request, count: order.count, key: try key(of: request, bytes))
    }

    private func key(of request: Request, _ body: [UInt8]) throws -> JobQueue.IdempotencyKey? {
        guard let name = HTTPField.Name.idempotencyKey, let value = request.headers[name] else { return nil }
        guard 1...255 ~= value.utf8.count else {
            throw HTTPProblem(status: .badRequest, detail: "An Idempotency-Key has 1 to 255 characters.")
        }
        return JobQueue.IdempotencyKey(name: value, digest: Array(SHA256.hash(data: body)))
    }

    private func id(_ context: BasicRequestContext) throws -> UUID {
        guard let id = context.parameters.get("id").flatMap({ UUID(uuidString: $0) }) else {
            throw HTTPProblem.noSuchJob
        }
        return id
    }

    private static let parameter: JSONValue = [
        "name": "id", "in": "path", "required": true, "description": "The id that POST /jobs returned",
        "schema": ["type": "string"],
    ]
    private static let notFound = ("404", OpenAPIDocument.response("There is no such job", schema: "ErrorDetail"))

    private var submitRoute: Route {
        let key: JSONValue = [
            "name": "Idempotency-Key", "in": "header",
            "description": "A name for this request: sent again, it is answered with the job it had",
            "schema": ["type": "string", "minLength": 1, "maxLength": 255],
        ]
        return Route(
            .post,
            "/jobs",
            operation: OpenAPIDocument.operation(
                "Asks for pictures without waiting for them",
                id: "submit",
                tag: "jobs",
                parameters: [key],
                body: "GenerationRequest",
                responses: [
                    ("202", OpenAPIDocument.response("The job is queued, or was before", schema: "Job")),
                    ("400", OpenAPIDocument.response("The idempotency key is none", schema: "ErrorDetail")),
                    ("408", OpenAPIDocument.response("The request came too slowly", schema: "ErrorDetail")),
                    ("422", OpenAPIDocument.response("The request is invalid", schema: "HTTPValidationError")),
                    ("503", OpenAPIDocument.response("The queue takes no jobs", schema: "ErrorDetail")),
                ]
            )
        ) { request, _ in
            let record = try await admit(request)
            let path = "/jobs/\(record.id.uuidString.lowercased())"
            return Response(status: .accepted, json: record.json, headers: [.location: path])
        }
    }

    private var listRoute: Route {
        let parameters: JSONValue = [
            [
                "name": "state", "in": "query", "description": "Jobs in this state alone",
                "schema": ["type": "string", "enum": .array(JobRecord.State.allCases.map { .string($0.rawValue) })],
            ],
            [
                "name": "limit", "in": "query", "description": "How many at most",
                "schema": [
                    "type": "integer", "minimum": 1, "maximum": JSONValue(Self.longestPage), "default": 50,
                ],
            ],
            [
                "name": "before", "in": "query", "description": "Older than this job: the last id of the page before",
                "schema": ["type": "string"],
            ],
        ]
        return Route(
            .get,
            "/jobs",
            operation: OpenAPIDocument.operation(
                "The jobs, the newest first; of those that are done, the last \(JobQueue.historyLength)",
                id: "jobs",
                tag: "jobs",
                parameters: parameters,
                responses: [
                    (
                        "200",
                        OpenAPIDocument.response(
                            "A page of jobs",
                            mediaType: "application/json",
                            schema: [
                                "type": "object", "required": ["jobs"],
                                "properties": [
                                    "jobs": ["type": "array", "items": ["$ref": "#/components/schemas/Job"]]
                                ],
                            ]
                        )
                    ),
                    ("422", OpenAPIDocument.response("A parameter is invalid", schema: "HTTPValidationError")),
                ]
            )
        ) { request, _ in
            let query = request.uri.queryParameters
            func problem(_ name: String, _ message: String) -> RequestProblems {
                let input = query.get(name).map { JSONValue.string($0) }
                return RequestProblems(
                    problems: [
                        RequestProblem(type: "value_error", at: [.name("query"), .name(name)], message, input: input)
                    ]
                )
            }
            let state = try query.get("state").map { text in
                guard let state = JobRecord.State(rawValue: text) else {
                    let names = JobRecord.State.allCases.map { "'\($0.rawValue)'" }.joined(separator: ", ")
                    throw problem("state", "Input should be one of \(names)")
                }
                return state
            }
            let limit = try query.get("limit").map { text in
                guard let limit = Int(text), 1...Self.longestPage ~= limit else {
                    throw problem("limit", "Input should be a valid integer from 1 to \(Self.longestPage)")
                }
                return limit
            }
            let before = try query.get("before").map { text in
                guard let id = UUID(uuidString: text) else {
                    throw problem("before", "Input should be the id of a job")
                }
                return id
            }
            let records = await queue.records(in: state, before: before, limit: limit ?? 50)
            return Response(json: ["jobs": .array(records.map(\.json))])
        }
    }

    private var jobRoute: Route {
        Route(
            .get,
            "/jobs/{id}",
            operation: OpenAPIDocument.operation(
                "A job: how far it is, and what came of it",
                id: "job",
                tag: "jobs",
                parameters: [Self.parameter],
                responses: [("200", OpenAPIDocument.response("The job", schema: "Job")), Self.notFound]
            )
        ) { _, context in
            guard let record = await queue.record(try id(context)) else { throw HTTPProblem.noSuchJob }
            return Response(json: record.json)
        }
    }

    private var cancelRoute: Route {
        Route(
            .delete,
            "/jobs/{id}",
            operation: OpenAPIDocument.operation(
                "Cancels a job: at once while it waits, after the present step when it runs; one that is done stays as it is",
                id: "cancel",
                tag: "jobs",
                parameters: [Self.parameter],
                responses: [("200", OpenAPIDocument.response("The job as it is now", schema: "Job")), Self.notFound]
            )
        ) { _, context in
            guard let record = await queue.cancel(try id(context)) else { throw HTTPProblem.noSuchJob }
            return Response(json: record.json)
        }
    }

    private var eventsRoute: Route {
        Route(
            .get,
            "/jobs/{id}/events",
            operation: OpenAPIDocument.operation(
                "A job as server-sent events: queued, position, step, and at the end completed, failed or cancelled",
                id: "events",
                tag: "jobs",
                parameters: [
                    Self.parameter,
                    [
                        "name": "Last-Event-ID", "in": "header",
                        "description": "The last event that came before the connection broke",
                        "schema": ["type": "string"],
                    ],
                ],
                responses: [
                    (
                        "200",
                        OpenAPIDocument.response(
                            "Events until the job is done; their data is the job without its parameters and times",
                            mediaType: "text/event-stream",
                            schema: ["type": "string"]
                        )
                    ),
                    ("204", ["description": "The last event has come"]),
                    Self.notFound,
                ]
            )
        ) { request, context in
            let id = try id(context)
            guard let record = await queue.record(id), let changes = await queue.changes(of: id) else {
                throw HTTPProblem.noSuchJob
            }
            let last = HTTPField.Name.lastEventID.flatMap { request.headers[$0] }.flatMap { Int($0) } ?? 0
            // What a browser takes as the end; after anything else it connects again.
            if record.state.isFinal, last >= record.version { return Response(status: .noContent) }
            return Response(
                status: .ok,
                headers: [
                    .contentType: "text/event-stream", .cacheControl: "no-store",
                ],
                body: ResponseBody { writer in
                    for await line in Self.withHeartbeat(changes) {
                        guard let record = line else {
                            try await writer.write(ByteBuffer(string: ": alive\n\n"))
                            continue
                        }
                        guard record.version > last else { continue }
                        try await writer.write(ByteBuffer(string: record.serverSentEvent))
                    }
                    try await writer.finish(nil)
                }
            )
        }
    }

    /// A stream with nil wherever nothing else came for a while.
    private static func withHeartbeat(_ changes: AsyncStream<JobRecord>) -> AsyncStream<JobRecord?> {
        let (stream, continuation) = AsyncStream<JobRecord?>.makeStream(bufferingPolicy: .bufferingNewest(4))
        let heart = Task {
            while !Task.isCancelled {
                try await Task.sleep(for: heartbeat)
                continuation.yield(nil)
            }
        }
        let relay = Task {
            for await record in changes { continuation.yield(record) }
            heart.cancel()
            continuation.finish()
        }
        continuation.onTermination = { _ in
            heart.cancel()
            relay.cancel()
        }
        return stream
    }
}

extension JobRecord {
    /// The event in the format of the HTML standard, 9.2.
    fileprivate var serverSentEvent: String {
        "id: \(version)\nevent: \(event)\ndata: \(progressJSON.serialized)\n\n"
    }
}
