// The OpenAPI document: the parts shared by all routes and the schemas, put together with the operations of the route
// table. Version 3.0, which every release of Swagger UI can show.

internal import HTTPTypes
internal import JSON

/// Builds `/openapi.json`.
enum OpenAPIDocument {
    /// The whole document.
    ///
    /// - Parameters:
    ///   - routes: the route table.
    ///   - generate: the request body of `POST /generate`.
    static func document(routes: [Route], generate: GenerateSchema) -> JSONValue {
        var paths: JSONObject = [:]
        for route in routes {
            guard let operation = route.operation else { continue }
            var operations = paths[route.path]?.objectValue ?? [:]
            operations[route.method.rawValue.lowercased()] = operation
            paths[route.path] = .object(operations)
        }
        return [
            "openapi": "3.0.3",
            "info": [
                "title": "Stable Diffusion API",
                "version": .string(softwareVersion),
                "description": "A picture from a text: POST /generate, then GET /download/{id}.",
            ],
            "paths": .object(paths),
            "components": [
                "schemas": [
                    "GenerationRequest": generate.openAPI,
                    "GenerationResult": generationResult,
                    "Job": job,
                    "HTTPValidationError": httpValidationError,
                    "ValidationError": validationError,
                    "ErrorDetail": errorDetail,
                ]
            ],
        ]
    }

    /// An operation object.
    static func operation(
        _ summary: String,
        id: String,
        tag: String,
        parameters: JSONValue? = nil,
        body: String? = nil,
        responses: [(status: String, response: JSONValue)]
    ) -> JSONValue {
        var members: JSONObject = ["summary": .string(summary), "operationId": .string(id), "tags": [.string(tag)]]
        members["parameters"] = parameters
        if let body { members["requestBody"] = ["required": true, "content": json(body)] }
        members["responses"] = .object(JSONObject(responses.map { (name: $0.status, value: $0.response) }))
        return .object(members)
    }

    /// A response with a JSON body of a named schema.
    static func response(_ description: String, schema: String, headers: JSONValue? = nil) -> JSONValue {
        var members: JSONObject = ["description": .string(description), "content": json(schema)]
        members["headers"] = headers
        return .object(members)
    }

    /// A response with a body of a media type.
    static func response(_ description: String, mediaType: String, schema: JSONValue) -> JSONValue {
        [
            "description": .string(description),
            "content": .object([mediaType: ["schema": schema]]),
        ]
    }

    private static func json(_ schema: String) -> JSONValue {
        ["application/json": ["schema": ["$ref": .string("#/components/schemas/\(schema)")]]]
    }

    private static let generationResult: JSONValue = [
        "title": "GenerationResult",
        "type": "object",
        "required": ["download_id", "time"],
        "properties": [
            "download_id": [
                "title": "Download ID",
                "type": "string",
                "description": "Identifier to download the generated image, the first of several",
            ],
            "download_ids": [
                "title": "Download IDs",
                "type": "array",
                "items": ["type": "string"],
                "description": "Identifiers of all images; only where count was more than 1",
            ],
            "time": [
                "title": "Time",
                "type": "number",
                "description": "Seconds it took to generate the images",
            ],
        ],
    ]

    private static let job: JSONValue = {
        func nullable(_ type: JSONValue, _ description: JSONValue) -> JSONValue {
            ["type": type, "nullable": true, "description": description]
        }
        let image: JSONValue = [
            "type": "object",
            "required": ["id", "url", "seed", "seconds"],
            "properties": [
                "id": ["type": "string"],
                "url": ["type": "string", "description": "Where it is, on this server"],
                "seed": ["type": "integer"],
                "seconds": ["type": "number", "description": "Seconds it took"],
            ],
        ]
        return [
            "title": "Job",
            "type": "object",
            "required": ["id", "state", "position", "step", "steps", "eta", "images", "error"],
            "properties": [
                "id": ["type": "string"],
                "state": ["type": "string", "enum": .array(JobRecord.State.allCases.map { .string($0.rawValue) })],
                "position": nullable("integer", "Jobs that are run before it, while it waits"),
                "step": ["type": "integer", "description": "Steps that are done, of all images"],
                "steps": nullable("integer", "Steps of all images; null before the first begins"),
                "eta": nullable("number", "Seconds until it is done, about, while it runs"),
                "images": ["type": "array", "items": image],
                "prompt_characters_cut": nullable("integer", "How much of the prompt the model did not read"),
                "error": [
                    "type": "object", "nullable": true,
                    "description": "The status and the detail that POST /generate is answered with",
                    "properties": ["status": ["type": "integer"], "detail": [:]],
                ],
                "created": ["type": "string", "format": "date-time"],
                "started": ["type": "string", "format": "date-time", "nullable": true],
                "finished": ["type": "string", "format": "date-time", "nullable": true],
                "parameters": [
                    "type": "object",
                    "description": "What was asked for, with every default filled in, as POST /generate takes it",
                ],
            ],
        ]
    }()

    private static let httpValidationError: JSONValue = [
        "title": "HTTPValidationError",
        "type": "object",
        "properties": [
            "detail": [
                "title": "Detail",
                "type": "array",
                "items": ["$ref": "#/components/schemas/ValidationError"],
            ]
        ],
    ]

    private static let validationError: JSONValue = [
        "title": "ValidationError",
        "type": "object",
        "required": ["loc", "msg", "type"],
        "properties": [
            "loc": [
                "title": "Location",
                "type": "array",
                "items": ["anyOf": [["type": "string"], ["type": "integer"]]],
            ],
            "msg": ["title": "Message", "type": "string"],
            "type": ["title": "Error Type", "type": "string"],
            "input": ["title": "Input"],
            "ctx": ["title": "Context", "type": "object"],
        ],
    ]

    private static let errorDetail: JSONValue = [
        "title": "ErrorDetail",
        "type": "object",
        "required": ["detail"],
        "properties": ["detail": ["title": "Detail", "type": "string"]],
    ]
}
