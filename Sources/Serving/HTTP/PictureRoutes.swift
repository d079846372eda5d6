// The two routes that make and hand out pictures.

internal import Dispatch
internal import Foundation
internal import HTTPTypes
internal import Hummingbird
internal import JSON
internal import StableDiffusion

extension Daemon {
    /// `POST /generate` and `GET /download/{id}`.
    var pictureRoutes: [Route] { [generateRoute, downloadRoute] }

    private var generateRoute: Route {
        let retryAfter: JSONValue = [
            "Retry-After": ["description": "Seconds after which to try again", "schema": ["type": "integer"]]
        ]
        return Route(
            .post,
            "/generate",
            operation: OpenAPIDocument.operation(
                "Makes a picture and waits for it",
                id: "generate",
                tag: "pictures",
                body: "GenerationRequest",
                responses: [
                    (
                        "200",
                        OpenAPIDocument.response(
                            "The picture is made and kept",
                            schema: "GenerationResult",
                            headers: [
                                "X-Job-Id": ["description": "The job's id", "schema": ["type": "string"]],
                                "X-Prompt-Characters-Cut": [
                                    "description": "Only when the prompt was longer than the model reads",
                                    "schema": ["type": "integer"],
                                ],
                            ]
                        )
                    ),
                    ("408", OpenAPIDocument.response("The request came too slowly", schema: "ErrorDetail")),
                    ("422", OpenAPIDocument.response("The request is invalid", schema: "HTTPValidationError")),
                    (
                        "503",
                        OpenAPIDocument.response(
                            "The queue is full, the model is being loaded, the service is going down, or the device failed",
                            schema: "ErrorDetail",
                            headers: retryAfter
                        )
                    ),
                    ("507", OpenAPIDocument.response("The disk is full", schema: "ErrorDetail")),
                ]
            )
        ) { request, _ in
            switch configuration.queue.onDisconnect {
            case .finish: return try await answer(try await admit(request))
            case .cancel:
                // Reading on is how a connection is seen to close, so nothing else can be read from it afterwards.
                var response = try await request.body.consumeWithCancellationOnInboundClose { body in
                    let job = try await admit(request, body)
                    return try await withTaskCancellationHandler {
                        try await answer(job)
                    } onCancel: {
                        Task { await queue.cancel(job.id) }
                    }
                }
                response.headers[.connection] = "close"
                return response
            }
        }
    }

    /// Waits for a job and answers with its pictures, or why there are none.
    private func answer(_ job: JobRecord) async throws -> Response {
        var headers: HTTPFields = [:]
        if let name = HTTPField.Name.jobID { headers[name] = job.id.uuidString.lowercased() }
        // Jobs that run or wait are never forgotten.
        guard let record = await queue.outcome(of: job.id) else { throw HTTPProblem.noSuchJob }
        if let failure = record.failure {
            guard var response = Response(problem: failure) else { throw failure }
            response.headers.append(contentsOf: headers)
            return response
        }
        let images = record.images
        if let cut = images.first?.truncatedPrompt, let name = HTTPField.Name("X-Prompt-Characters-Cut") {
            headers[name] = String(cut.count)
        }
        let ids = images.map { JSONValue.string($0.id.uuidString.lowercased()) }
        let seconds = images.reduce(0) { $0 + $1.seconds }
        var members: JSONObject = [
            "download_id": ids.first ?? .null, "time": JSONValue((seconds * 1e6).rounded() / 1e6),
        ]
        if ids.count > 1 { members["download_ids"] = .array(ids) }
        return Response(json: .object(members), headers: headers)
    }

    /// Made anew for each request, because the sizes of models are known only once they have been looked at.
    var generateSchema: GenerateSchema {
        let models = catalogue.entries.map { entry in
            GenerateSchema.Model(
                name: entry.name,
                nativeSize: entry.outline?.nativeSize,
                sizeMultiple: entry.outline?.sizeMultiple ?? 8,
                problem: entry.problem
            )
        }
        // The usual model's trouble ends the daemon, and is no matter of a request.
        var usual = models.first ?? GenerateSchema.Model(name: configuration.model.name)
        usual.problem = nil
        return GenerateSchema(configuration: configuration, usualModel: usual, otherModels: Array(models.dropFirst()))
    }

    private var downloadRoute: Route {
        Route(
            .get,
            "/download/{id}",
            operation: OpenAPIDocument.operation(
                "A finished picture",
                id: "download",
                tag: "pictures",
                parameters: [
                    [
                        "name": "id", "in": "path", "required": true,
                        "description": "The download_id that POST /generate returned",
                        "schema": ["type": "string"],
                    ]
                ],
                responses: [
                    (
                        "200",
                        OpenAPIDocument.response(
                            "The picture",
                            mediaType: "image/png",
                            schema: ["type": "string", "format": "binary"]
                        )
                    ),
                    ("404", OpenAPIDocument.response("There is no such picture", schema: "ErrorDetail")),
                ]
            )
        ) { _, context in
            // Only a UUID is ever looked up, so no name can lead out of the directory.
            guard let id = context.parameters.get("id").flatMap({ UUID(uuidString: $0) }) else {
                throw HTTPProblem.noSuchFile
            }
            guard let bytes = try await onFileThread({ [store] in try store.read(id) }) else {
                throw HTTPProblem.noSuchFile
            }
            return Response(
                status: .ok,
                headers: [
                    .contentType: "image/png",
                    .contentDisposition: "attachment; filename=\"\(id.uuidString.lowercased()).png\"",
                ],
                body: .init(byteBuffer: ByteBuffer(bytes: bytes))
            )
        }
    }
}

/// Runs blocking file access where it holds up neither an event loop nor the cooperative pool.
private func onFileThread<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        fileQueue.async { continuation.resume(with: Result(catching: body)) }
    }
}

private let fileQueue = DispatchQueue(label: "files", attributes: .concurrent)
