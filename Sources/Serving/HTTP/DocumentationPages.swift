// `/docs`: Swagger UI from files on this machine, or, where those are not installed, a plain page made from the OpenAPI
// document. Neither asks any other host for anything.

internal import Foundation
internal import HTTPTypes
internal import Hummingbird
internal import JSON

/// The pages for people who read about the interface.
struct DocumentationPages: Sendable {
    /// The files of Swagger UI that the page needs; no other name is ever looked up.
    static let assets = ["swagger-ui.css": "text/css; charset=utf-8", "swagger-ui-bundle.js": "text/javascript"]

    /// Starts Swagger UI.
    ///
    /// A file of its own so that the page needs no inline script.
    private static let initializer = """
        window.onload = () => {
          SwaggerUIBundle({
            url: "openapi.json",
            dom_id: "#swagger-ui",
            presets: [SwaggerUIBundle.presets.apis],
            layout: "BaseLayout",
            validatorUrl: null
          });
        };

        """

    private let files: [String: [UInt8]]

    /// Pages with the assets of the first directory that has all of them.
    init(directories: [String]) {
        files =
            directories.lazy.compactMap { directory -> [String: [UInt8]]? in
                var files: [String: [UInt8]] = [:]
                for name in Self.assets.keys {
                    guard let data = FileManager.default.contents(atPath: "\(directory)/\(name)") else { return nil }
                    files[name] = [UInt8](data)
                }
                return files
            }.first ?? [:]
    }

    /// Where Swagger UI may be: `$DIFFUSED_SWAGGER_UI`, beside an installed program, and the build directory here.
    static func standardDirectories(
        environment: [String: String] = ProcessInfo.processInfo.environment
    ) -> [String] {
        var directories: [String] = []
        if let directory = environment["DIFFUSED_SWAGGER_UI"], !directory.isEmpty { directories.append(directory) }
        if let program = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe") {
            let bin = URL(fileURLWithPath: program).deletingLastPathComponent()
            directories.append(bin.appendingPathComponent("../share/diffused/swagger-ui").standardized.path)
        }
        directories.append(".build/swagger-ui")
        return directories
    }

    /// The page itself.
    func page(document: JSONValue) -> Response {
        // A script may come from here only; Swagger UI writes styles and draws icons from data URLs.
        let policy = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
        return Response(
            status: .ok,
            headers: [.contentType: "text/html; charset=utf-8", .contentSecurityPolicy: policy],
            body: .init(byteBuffer: ByteBuffer(string: files.isEmpty ? Self.plainPage(document) : Self.swaggerPage))
        )
    }

    /// A file of the page.
    ///
    /// - Throws: `HTTPProblem` when there is none of that name.
    func file(_ name: String) throws -> Response {
        if name == "initializer.js", !files.isEmpty {
            return Self.file(ByteBuffer(string: Self.initializer), type: "text/javascript")
        }
        guard let type = Self.assets[name], let bytes = files[name] else { throw HTTPProblem.notFound }
        return Self.file(ByteBuffer(bytes: bytes), type: type)
    }

    private static func file(_ content: ByteBuffer, type: String) -> Response {
        Response(
            status: .ok,
            headers: [.contentType: type, .cacheControl: "max-age=3600"],
            body: .init(byteBuffer: content)
        )
    }

    private static let swaggerPage = """
        <!DOCTYPE html>
        <html lang="en">
        <head>
        <meta charset="utf-8">
        <meta name="viewport" content="width=device-width, initial-scale=1">
        <title>Stable Diffusion API</title>
        <link rel="stylesheet" href="docs/swagger-ui.css">
        <link rel="icon" href="data:,">
        </head>
        <body>
        <div id="swagger-ui"></div>
        <script src="docs/swagger-ui-bundle.js"></script>
        <script src="docs/initializer.js"></script>
        </body>
        </html>

        """

    // MARK: Without Swagger UI

    private static func plainPage(_ document: JSONValue) -> String {
        var body = """
            <h1>Stable Diffusion API</h1>
            <p>\(escaped(document["info"]?["description"]))</p>
            <pre>curl -s -X POST http://HOST:PORT/generate -H 'Content-Type: application/json' \\
              -d '{"prompt": "a red circle on a blue background"}'
            curl -s -o picture.png http://HOST:PORT/download/DOWNLOAD_ID</pre>

            """
        for path in document["paths"]?.objectValue ?? [:] {
            for operation in path.value.objectValue ?? [:] {
                body += "<h2><code>\(operation.name.uppercased()) \(escaped(path.name))</code></h2>\n"
                body += "<p>\(escaped(operation.value["summary"]))</p>\n<ul>\n"
                for response in operation.value["responses"]?.objectValue ?? [:] {
                    body += "<li><b>\(escaped(response.name))</b> \(escaped(response.value["description"]))</li>\n"
                }
                body += "</ul>\n"
                if operation.value["requestBody"] != nil { body += table(document) }
            }
        }
        return """
            <!DOCTYPE html>
            <html lang="en">
            <head>
            <meta charset="utf-8">
            <meta name="viewport" content="width=device-width, initial-scale=1">
            <title>Stable Diffusion API</title>
            <link rel="icon" href="data:,">
            <style>
            body { font-family: sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.4 }
            pre { background: #f4f4f4; padding: 1rem; overflow-x: auto }
            table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left }
            </style>
            </head>
            <body>
            \(body)
            <hr>
            <p>The whole description is in <a href="openapi.json">openapi.json</a>. For a page that can send requests,
            install Swagger UI: put its <code>swagger-ui.css</code> and <code>swagger-ui-bundle.js</code> into a directory
            (<code>scripts/run</code> and <code>scripts/install</code> do this; Debian has them in
            <code>python3-flasgger</code>), set <code>DIFFUSED_SWAGGER_UI</code> to it and restart.</p>
            </body>
            </html>

            """
    }

    /// The fields of the request body.
    private static func table(_ document: JSONValue) -> String {
        var rows = "<table>\n<tr><th>field</th><th>type</th><th>default</th><th>meaning</th></tr>\n"
        let schema = document["components"]?["schemas"]?["GenerationRequest"]
        for field in schema?["properties"]?.objectValue ?? [:] {
            rows += "<tr><td><code>\(escaped(field.name))</code></td><td>\(escaped(field.value["type"]))</td>"
            rows += "<td>\(escaped(field.value["default"]))</td><td>\(escaped(field.value["description"]))</td></tr>\n"
        }
        return rows + "</table>\n"
    }

    private static func escaped(_ value: JSONValue?) -> String {
        switch value {
        case .string(let text)?: escaped(text)
        case let value?: escaped(value.serialized)
        case nil: ""
        }
    }

    private static func escaped(_ text: String) -> String {
        text.replacing("&", with: "&amp;").replacing("<", with: "&lt;").replacing(">", with: "&gt;")
    }
}
