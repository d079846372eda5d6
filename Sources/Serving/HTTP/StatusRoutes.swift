// The routes that tell how the service is: for people, for whoever restarts it, and for Prometheus.

internal import HTTPTypes
internal import Hummingbird
internal import JSON
internal import StableDiffusion

extension Daemon {
    /// `GET /`, the health checks and the metrics.
    var statusRoutes: [Route] { [rootRoute, modelsRoute, liveRoute, readyRoute, metricsRoute] }

    private var rootRoute: Route {
        Route(
            .get,
            "/",
            operation: OpenAPIDocument.operation(
                "Says where to read on",
                id: "root",
                tag: "service",
                responses: [
                    (
                        "200",
                        OpenAPIDocument.response(
                            "A pointer to this page",
                            mediaType: "application/json",
                            schema: ["type": "object", "properties": ["message": ["type": "string"]]]
                        )
                    )
                ]
            )
        ) { _, _ in
            Response(json: ["message": "See /docs for documentation"])
        }
    }

    private var modelsRoute: Route {
        let model: JSONValue = [
            "type": "object",
            "required": ["name", "default", "loaded", "precision", "native_size", "size_multiple", "error"],
            "properties": [
                "name": ["type": "string", "description": "What a request calls it"],
                "default": ["type": "boolean", "description": "Whether it draws when a request names none"],
                "loaded": ["type": "boolean", "description": "Whether it is on the device now"],
                "precision": ["type": "string", "enum": .array(Precision.allCases.map { .string($0.rawValue) })],
                "native_size": [
                    "type": "integer", "nullable": true,
                    "description": "Width and height it was trained for, in pixels; null while that is unknown",
                ],
                "size_multiple": [
                    "type": "integer", "nullable": true, "description": "What width and height are multiples of",
                ],
                "error": ["type": "string", "nullable": true, "description": "Why it cannot be used"],
            ],
        ]
        return Route(
            .get,
            "/models",
            operation: OpenAPIDocument.operation(
                "The models that a request may name",
                id: "models",
                tag: "pictures",
                responses: [
                    (
                        "200",
                        OpenAPIDocument.response(
                            "All of them, the usual one first",
                            mediaType: "application/json",
                            schema: [
                                "type": "object",
                                "required": ["models"],
                                "properties": ["models": ["type": "array", "items": model]],
                            ]
                        )
                    )
                ]
            )
        ) { _, _ in
            let models = zip(catalogue.entries, configuration.allModels).map { entry, model -> JSONValue in
                [
                    "name": .string(entry.name),
                    "default": .bool(entry.name == configuration.model.name),
                    "loaded": .bool(entry.loaded != nil),
                    "precision": .string((model.precision ?? configuration.precision).rawValue),
                    "native_size": entry.outline.map { JSONValue($0.nativeSize) } ?? .null,
                    "size_multiple": entry.outline.map { JSONValue($0.sizeMultiple) } ?? .null,
                    "error": entry.problem.map { .string($0) } ?? .null,
                ]
            }
            return Response(json: ["models": .array(models)])
        }
    }

    private static var stateSchema: JSONValue {
        [
            "type": "object",
            "required": ["status"],
            "properties": ["status": ["type": "string"], "detail": ["type": "string"]],
        ]
    }

    private var liveRoute: Route {
        let response = { OpenAPIDocument.response($0, mediaType: "application/json", schema: Self.stateSchema) }
        return Route(
            .get,
            "/health/live",
            operation: OpenAPIDocument.operation(
                "Whether the process should be left alone",
                id: "live",
                tag: "service",
                responses: [("200", response("It works")), ("503", response("The device hangs"))]
            )
        ) { _, _ in
            if let stall = activity.stall() {
                return Response(
                    status: .serviceUnavailable,
                    json: ["status": "stalled", "detail": .string("The device hangs: \(stall).")]
                )
            }
            return Response(json: ["status": "live"])
        }
    }

    private var readyRoute: Route {
        let response = { OpenAPIDocument.response($0, mediaType: "application/json", schema: Self.stateSchema) }
        return Route(
            .get,
            "/health/ready",
            operation: OpenAPIDocument.operation(
                "Whether pictures can be asked for",
                id: "ready",
                tag: "service",
                responses: [("200", response("Yes")), ("503", response("No, and why not"))]
            )
        ) { _, _ in
            let (status, detail) = await readiness()
            guard status == "ready" else {
                return Response(
                    status: .serviceUnavailable,
                    json: ["status": .string(status), "detail": .string(detail)]
                )
            }
            return Response(json: ["status": "ready", "detail": .string(detail)])
        }
    }

    /// The service's state in one word and one sentence.
    private func readiness() async -> (status: String, detail: String) {
        if let stall = activity.stall() { return ("stalled", "The device hangs: \(stall).") }
        let status = await queue.status
        switch status.phase {
        case .loading: return ("loading", "The model is being loaded and its kernels compiled.")
        case .draining: return ("draining", "The service is shutting down.")
        case .serving:
            let model = status.model
                .map { "\($0.name) in \($0.precision.rawValue) on \($0.deviceName)" }
            return ("ready", model ?? "")
        }
    }

    private var metricsRoute: Route {
        Route(
            .get,
            "/metrics",
            operation: OpenAPIDocument.operation(
                "Counters for Prometheus",
                id: "metrics",
                tag: "service",
                responses: [
                    (
                        "200",
                        OpenAPIDocument.response(
                            "Prometheus' text format",
                            mediaType: "text/plain",
                            schema: ["type": "string"]
                        )
                    )
                ]
            )
        ) { _, _ in
            let status = await queue.status
            let text = metrics.text(
                Metrics.Gauges(
                    waiting: status.waiting,
                    capacity: configuration.queue.capacity,
                    isRunning: status.isRunning,
                    isReady: status.phase == .serving && activity.stall() == nil,
                    models: catalogue.entries
                )
            )
            return Response(
                status: .ok,
                headers: [.contentType: "text/plain; version=0.0.4; charset=utf-8"],
                body: .init(byteBuffer: ByteBuffer(string: text))
            )
        }
    }
}
