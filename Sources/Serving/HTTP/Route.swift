// The routes as a table: what the router serves, what `/openapi.json` describes and what a 405 allows all come from it.

internal import HTTPTypes
internal import Hummingbird
internal import JSON

/// One route: a method on a path, what answers it, and how the OpenAPI document describes it.
struct Route: Sendable {
    typealias Handler = @Sendable (Request, BasicRequestContext) async throws -> Response

    let method: HTTPRequest.Method
    /// Path template, `{name}` for a captured part.
    let path: String
    /// Operation object of the OpenAPI document; nil for what is no interface, such as the files of a page.
    let operation: JSONValue?
    let handler: Handler

    init(
        _ method: HTTPRequest.Method,
        _ path: String,
        operation: JSONValue?,
        handler: @escaping Handler
    ) {
        self.method = method
        self.path = path
        self.operation = operation
        self.handler = handler
    }
}

/// Which methods exist on which paths.
struct RouteIndex: Sendable {
    private let entries: [(template: String, parts: [Substring], methods: [String])]

    init(_ routes: [Route]) {
        var methods: [(template: String, methods: [String])] = []
        for route in routes {
            // The router answers HEAD wherever it answers GET.
            let names = route.method == .get ? ["GET", "HEAD"] : [route.method.rawValue]
            if let index = methods.firstIndex(where: { $0.template == route.path }) {
                methods[index].methods += names
            } else {
                methods.append((route.path, names))
            }
        }
        entries = methods.map { ($0.template, $0.template.split(separator: "/"), $0.methods) }
    }

    /// Methods of the route that matches a path; none when there is no such route.
    func methods(forPath path: String) -> [String] {
        entry(forPath: path)?.methods ?? []
    }

    /// The template that matches a path.
    func template(forPath path: String) -> String? {
        entry(forPath: path)?.template
    }

    private func entry(forPath path: String) -> (template: String, parts: [Substring], methods: [String])? {
        let parts = path.split(separator: "/")
        return entries.first { entry in
            entry.parts.count == parts.count
                && zip(entry.parts, parts).allSatisfy { $0.hasPrefix("{") || $0 == $1 }
        }
    }
}
