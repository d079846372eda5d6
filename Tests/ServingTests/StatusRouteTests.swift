// The routes that tell about the service and about the interface: health, metrics, the OpenAPI document and its page.

import Foundation
import HTTPTypes
import Hummingbird
import HummingbirdTesting
import JSON
import NIOCore
import TestSupport
import Testing

@testable import Serving

@Suite struct StatusRouteTests {
    @Test func rootPointsToTheDocumentation() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let root = try await client.get("/")
                #expect(root.text == "{\"message\":\"See /docs for documentation\"}")
                let head = try await client.get("/", method: .head)
                #expect(head.status == .ok)
                #expect(head.headers[.contentLength] == String(root.body.readableBytes))
                #expect(head.body.readableBytes == 0)
            }
        }
    }

    @Test(
        arguments: [
            (HTTPRequest.Method.get, "/nothing", 404, nil), (.get, "/generate", 405, "POST"),
            (.delete, "/download/x", 405, "GET, HEAD"), (.post, "/", 405, "GET, HEAD"),
            (.options, "/generate", 405, "POST"),
            (.get, "/download", 404, nil), (.get, "/download/a/b", 404, nil), (.get, "/../etc/passwd", 404, nil),
            (.get, "/docs/../../etc/passwd", 404, nil), (.get, "/docs/passwd", 404, nil),
        ] as [(HTTPRequest.Method, String, Int, String?)]
    )
    func unknownPathsAndMethods(method: HTTPRequest.Method, path: String, status: Int, allow: String?) async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let answer = try await client.get(path, method: method)
                #expect(answer.status.code == status)
                #expect(answer.headers[.allow] == allow)
                #expect(answer.detail == (status == 404 ? "Not Found" : "Method Not Allowed"))
            }
        }
    }

    @Test func readinessNamesTheModel() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let ready = try await client.get("/health/ready")
                #expect(ready.text == "{\"status\":\"ready\",\"detail\":\"demo in float32 on no device\"}")
            }
        }
    }

    @Test func aHungDeviceIsNotLive() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                daemon.activity.begin(.decode, since: .now - .seconds(700))
                for path in ["/health/live", "/health/ready"] {
                    let answer = try await client.get(path)
                    #expect(answer.status == .serviceUnavailable)
                    #expect(answer.json?["status"] == "stalled")
                }
            }
        }
    }

    @Test func metricsCount() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                _ = try await client.generate("{\"prompt\": \"a\"}")
                _ = try await client.generate("{}")
                _ = try await client.get("/some/unknown/path")
                let answer = try await client.get("/metrics")
                #expect(answer.headers[.contentType] == "text/plain; version=0.0.4; charset=utf-8")
                let lines = Set(answer.text.split(separator: "\n").map(String.init))
                for line in [
                    "diffused_http_requests_total{method=\"POST\",route=\"/generate\",status=\"200\"} 1",
                    "diffused_http_requests_total{method=\"POST\",route=\"/generate\",status=\"422\"} 1",
                    "diffused_http_requests_total{method=\"GET\",route=\"other\",status=\"404\"} 1",
                    "diffused_generations_total{outcome=\"done\"} 1",
                    "diffused_generations_total{outcome=\"failed\"} 0",
                    "diffused_steps_total 2", "diffused_queue_depth 0", "diffused_queue_capacity 64",
                    "diffused_ready 1", "diffused_generation_seconds_bucket{le=\"+Inf\"} 1",
                    "diffused_wait_seconds_count 1", "# TYPE diffused_wait_seconds histogram",
                    "diffused_model_info{model=\"demo\",device=\"no device\",precision=\"float32\",version=\"\(softwareVersion)\"} 1",
                ] {
                    #expect(lines.contains(line), "\(line)")
                }
                // Every sample is a name, labels and a number.
                for line in lines where !line.hasPrefix("#") {
                    #expect(line.wholeMatch(of: /[a-z_]+(\{([a-z]+="[^"]*",?)+\})? [0-9.e+-]+/) != nil, "\(line)")
                }
            }
        }
    }
}

@Suite struct DocumentationTests {
    /// What the document says exists, exists, and the other way round.
    @Test func documentMatchesTheRoutes() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let document = try #require(try await client.get("/openapi.json").json)
                #expect(document["info"]?["title"] == "Stable Diffusion API")
                guard case .object(let paths)? = document["paths"] else {
                    Issue.record("no paths")
                    return
                }
                var described: Set<String> = []
                for path in paths {
                    guard case .object(let operations) = path.value else { continue }
                    for operation in operations {
                        described.insert("\(operation.name.uppercased()) \(path.name)")
                        // A documented route answers neither 404 (but for an unknown picture) nor 405.
                        let method = try #require(HTTPRequest.Method(operation.name.uppercased()))
                        let uri = path.name.replacing("{id}", with: UUID().uuidString)
                        let answer = try await client.execute(uri: uri, method: method, body: ByteBuffer(string: "{}"))
                        #expect(answer.detail != "Not Found" && answer.status != .methodNotAllowed)
                        #expect(
                            operation.value["responses"]?[String(answer.status.code)] != nil,
                            "\(uri) \(answer.status)"
                        )
                    }
                }
                // The files of the page are no interface. HEAD goes with every GET.
                let served = Set(daemon.routes().map { "\($0.method.rawValue) \($0.path)" })
                #expect(described == served.subtracting(["GET /docs/{file}"]))
            }
        }
    }

    @Test func referencesResolve() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let answer = try await client.get("/openapi.json")
                let names = answer.text.matches(of: /#\/components\/schemas\/([A-Za-z]+)/).map { String($0.1) }
                #expect(names.count > 5)
                for name in names {
                    #expect(answer.json?["components"]?["schemas"]?[name] != nil, "\(name)")
                }
            }
        }
    }

    /// The ranges that the document promises are the ranges that are checked.
    @Test func schemaMatchesValidation() async throws {
        try await withDaemon(configure: { $0.limits.steps = 30 }) { daemon in
            try await daemon.test { client in
                let document = try #require(try await client.get("/openapi.json").json)
                let fields = try #require(document["components"]?["schemas"]?["GenerationRequest"]?["properties"])
                #expect(fields["steps"]?["maximum"] == 30)
                #expect(fields["width"]?["default"] == 64)
                #expect(fields["seed"]?["maximum"] == .number("18446744073709551615"))
                let schema = GenerateSchema(configuration: daemon.configuration, nativeSize: 64)
                for name in ["steps", "width", "height", "seed"] {
                    for (bound, beyond) in [("minimum", "-"), ("maximum", "+")] {
                        guard case .number(let limit)? = fields[name]?[bound] else {
                            Issue.record("no \(bound) of \(name)")
                            continue
                        }
                        let inside = Array("{\"prompt\": \"a\", \"\(name)\": \(limit)}".utf8)
                        #expect(throws: Never.self) { try schema.decode(inside) }
                        // One digit more is beyond either bound, except below a minimum above zero.
                        let outside = beyond == "-" && !limit.hasPrefix("-") ? "0" : limit + "0"
                        let bytes = Array("{\"prompt\": \"a\", \"\(name)\": \(outside)}".utf8)
                        #expect(throws: RequestProblems.self) { try schema.decode(bytes) }
                    }
                }
            }
        }
    }

    @Test func plainPageWithoutSwaggerUI() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let page = try await client.get("/docs")
                #expect(page.status == .ok)
                #expect(page.headers[.contentType] == "text/html; charset=utf-8")
                for text in ["POST /generate", "GET /download/{id}", "<code>prompt</code>", "DIFFUSED_SWAGGER_UI"] {
                    #expect(page.text.contains(text), "\(text)")
                }
                try await #expect(client.get("/docs/swagger-ui.css").status == .notFound)
            }
        }
    }

    @Test func swaggerUIFromADirectory() async throws {
        let directory = try TemporaryDirectory()
        for name in ["swagger-ui.css", "swagger-ui-bundle.js", "secret.txt"] {
            _ = FileManager.default.createFile(
                atPath: "\(directory.path)/\(name)",
                contents: Data("content of \(name)".utf8)
            )
        }
        try await withDaemon(swaggerDirectories: ["/nonexistent", directory.path]) { daemon in
            try await daemon.test { client in
                let page = try await client.get("/docs").text
                // Whatever the page loads is served here.
                let links = page.matches(of: /(?:src|href)="([^"]+)"/).map { String($0.1) }
                #expect(links.count == 4)
                for link in links where link != "data:," {
                    let file = try await client.get("/" + link)
                    #expect(file.status == .ok, "\(link)")
                }
                #expect(!page.contains("//"))
                let slash = try await client.get("/docs/")
                #expect(slash.status == .temporaryRedirect)
                #expect(slash.headers[.location] == "../docs")
                try await #expect(client.get("/docs/swagger-ui.css").text == "content of swagger-ui.css")
                try await #expect(client.get("/docs/swagger-ui.css").headers[.contentType] == "text/css; charset=utf-8")
                try await #expect(client.get("/docs/secret.txt").status == .notFound)
            }
        }
    }
}
