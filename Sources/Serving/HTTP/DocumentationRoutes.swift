// The routes that describe the interface.

internal import HTTPTypes
internal import Hummingbird
internal import JSON
internal import StableDiffusion

extension Daemon {
    /// `GET /docs` with its files, and `GET /openapi.json`.
    var documentationRoutes: [Route] {
        [
            Route(
                .get,
                "/docs",
                operation: OpenAPIDocument.operation(
                    "This description, to read and to try",
                    id: "docs",
                    tag: "documentation",
                    responses: [
                        ("200", OpenAPIDocument.response("A page", mediaType: "text/html", schema: ["type": "string"]))
                    ]
                )
            ) { request, _ in
                guard !request.uri.path.hasSuffix("/") else {
                    // The page's links are relative, for the sake of proxies that serve it under another path.
                    return Response(status: .temporaryRedirect, headers: [.location: "../docs"])
                }
                return documentationPages.page(document: openAPIDocument)
            },
            Route(
                .get,
                "/openapi.json",
                operation: OpenAPIDocument.operation(
                    "This description, for programs",
                    id: "openapi",
                    tag: "documentation",
                    responses: [
                        (
                            "200",
                            OpenAPIDocument.response(
                                "An OpenAPI document",
                                mediaType: "application/json",
                                schema: ["type": "object"]
                            )
                        )
                    ]
                )
            ) { _, _ in
                Response(json: openAPIDocument)
            },
            Route(.get, "/docs/{file}", operation: nil) { _, context in
                try documentationPages.file(context.parameters.get("file") ?? "")
            },
        ]
    }

    private var openAPIDocument: JSONValue { OpenAPIDocument.document(routes: routes(), generate: generateSchema) }
}
