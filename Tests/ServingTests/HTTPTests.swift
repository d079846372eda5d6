// The HTTP interface, through the application that production builds, with a fake device behind it.

import Foundation
import HTTPTypes
import Hummingbird
import HummingbirdTesting
import JSON
import NIOCore
import StableDiffusion
import TestSupport
import Testing

@testable import Serving

extension TestResponse {
    var text: String { String(buffer: body) }
    var json: JSONValue? { try? JSONValue(parsing: Array(buffer: body)) }
    var detail: String? {
        guard case .string(let text)? = json?["detail"] else { return nil }
        return text
    }
    /// `type` of the first problem of a 422.
    var firstProblem: JSONValue? {
        guard case .array(let problems)? = json?["detail"] else { return nil }
        return problems.first
    }
}

extension TestClientProtocol {
    func generate(_ body: String, contentType: String? = "application/json") async throws -> TestResponse {
        var headers: HTTPFields = [:]
        headers[.contentType] = contentType
        return try await execute(uri: "/generate", method: .post, headers: headers, body: ByteBuffer(string: body))
    }

    func get(_ uri: String, method: HTTPRequest.Method = .get) async throws -> TestResponse {
        try await execute(uri: uri, method: method)
    }
}

extension Daemon {
    /// Runs a test against the application's router.
    func test(_ body: @escaping @Sendable (any TestClientProtocol) async throws -> Void) async throws {
        try await buildApplication().test(.router) { try await body($0) }
    }
}

/// The id in an answer to `POST /generate`.
private func downloadID(_ response: TestResponse) throws -> String {
    guard case .string(let id)? = response.json?["download_id"] else {
        throw HTTPError(.internalServerError, message: "no download_id in \(response.text)")
    }
    return id
}

@Suite struct GenerateAndDownloadTests {
    @Test func promptToPicture() async throws {
        let device = FakeDevice()
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                let answer = try await client.generate(
                    "{\"prompt\": \"a cat\", \"seed\": 18446744073709551615, \"width\": 136, \"height\": 72}"
                )
                #expect(answer.status == .ok)
                #expect(answer.headers[.contentType] == "application/json")
                let id = try downloadID(answer)
                #expect(id == UUID(uuidString: id)?.uuidString.lowercased())
                guard case .number(let seconds)? = answer.json?["time"] else {
                    Issue.record("no time in \(answer.text)")
                    return
                }
                #expect(try #require(Double(seconds)) > 0)

                let picture = try await client.get("/download/\(id)")
                #expect(picture.status == .ok)
                #expect(picture.headers[.contentType] == "image/png")
                #expect(picture.headers[.contentDisposition] == "attachment; filename=\"\(id).png\"")
                let bytes = Array(buffer: picture.body)
                let decoded = try DecodedPicture.rgb(bytes)
                #expect(decoded.width == 136)
                #expect(decoded.height == 72)
                #expect(decoded.pixels.dropFirst(136 * 3).starts(with: [0, 1, 255, 1, 1, 255]))
                #expect(picture.text.contains("Seed: 18446744073709551615"))

                let head = try await client.get("/download/\(id)", method: .head)
                #expect(head.status == .ok)
                #expect(head.headers[.contentLength] == String(bytes.count))
                #expect(head.body.readableBytes == 0)
                // Upper case names the same picture.
                try await #expect(client.get("/download/\(id.uppercased())").status == .ok)
            }
        }
        #expect(device.warmUp?.steps == 1)
        #expect(device.prepared.count == 1)
    }

    @Test func anyContentTypeWillDo() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                for type in [nil, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"]
                {
                    try await #expect(client.generate("{\"prompt\": \"a\"}", contentType: type).status == .ok)
                }
            }
        }
    }

    /// Each picture of several is the single one with its seed.
    @Test func severalPictures() async throws {
        let device = FakeDevice()
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                let body = "{\"prompt\": \"a\", \"seed\": SEED, \"width\": 8, \"height\": 8, \"count\": COUNT}"
                func generate(_ seed: String, _ count: String) async throws -> TestResponse {
                    try await client.generate(body.replacing("SEED", with: seed).replacing("COUNT", with: count))
                }
                let answer = try await generate("-1", "3")
                let listed = try #require(answer.json?["download_ids"]?.arrayValue)
                let ids = listed.compactMap(\.stringValue)
                #expect(ids.count == 3 && answer.json?["download_id"]?.stringValue == ids[0])
                for (id, seed) in zip(ids, ["-1", "0", "1"]) {
                    let single = try await generate(seed, "1")
                    #expect(single.json?["download_ids"] == nil)
                    let other = try downloadID(single)
                    try await #expect(
                        client.get("/download/\(id)").body == client.get("/download/\(other)").body
                    )
                }
                for count in ["0", "17", "1.5", "\"x\""] {
                    let refused = try await generate("1", count)
                    #expect(refused.status == .unprocessableContent)
                    #expect(refused.firstProblem?["loc"] == ["body", "count"])
                }
            }
        }
        #expect(device.prepared.prefix(3).map(\.seed.description) == ["-1", "0", "1"])
    }

    /// One that fails fails the request, and those before it are kept.
    @Test func aFailureEndsABatch() async throws {
        let device = FakeDevice()
        device.fail("a", with: .deviceFailed(reason: "lost"))
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                try await #expect(client.generate("{\"prompt\": \"a\", \"count\": 3}").status == .serviceUnavailable)
                #expect(device.prepared.count == 1)
                try await #expect(client.generate("{\"prompt\": \"b\"}").status == .ok)
            }
        }
    }

    @Test func cutPromptIsReported() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let name = try #require(HTTPField.Name("X-Prompt-Characters-Cut"))
                try await #expect(client.generate("{\"prompt\": \"long\"}").headers[name] == "8")
                try await #expect(client.generate("{\"prompt\": \"short\"}").headers[name] == nil)
            }
        }
    }

    @Test(arguments: [
        "/download/nothing", "/download/00000000-0000-0000-0000-000000000000", "/download/..%2f..%2fetc%2fpasswd",
        "/download/00000000-0000-0000-0000-000000000000.png", "/download/%00", "/download/~", "/download/é",
        "/download/{00000000-0000-0000-0000-000000000000}",
    ])
    func unknownPictures(path: String) async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let answer = try await client.get(path)
                #expect(answer.status == .notFound)
                #expect(answer.text == "{\"detail\":\"No such file\"}")
            }
        }
    }

    /// `problem` is the type and the last step of `loc`; the whole table of bodies is in `GenerateSchemaTests`.
    @Test(arguments: [
        ("{\"prompt\": ", "json_invalid"), ("", "missing"), ("[]", "model_attributes_type"), ("{}", "missing"),
        ("{\"prompt\": 1}", "string_type"), ("{\"prompt\": \"a\", \"width\": 100}", "multiple_of"),
        ("{\"prompt\": \"a\", \"height\": 4096}", "less_than_equal"),
        ("{\"prompt\": \"a\", \"steps\": 0}", "greater_than_equal"),
        ("{\"prompt\": \"a\", \"scale\": NaN}", "finite_number"),
        ("{\"prompt\": \"a\", \"seed\": 1e30}", "less_than_equal"),
        ("{\"prompt\": \"a\", \"sampler\": \"foo\"}", "enum"), ("{\"prompt\": \"\\ud800\"}", "json_invalid"),
        ("{\"prompt\": \"\(String(repeating: "a", count: 10_001))\"}", "string_too_long"),
        (String(repeating: "[", count: 100_000), "json_invalid"),
    ])
    func invalidBodies(body: String, type: String) async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let answer = try await client.generate(body)
                #expect(answer.status == .unprocessableContent)
                #expect(answer.headers[.contentType] == "application/json")
                #expect(answer.firstProblem?["type"] == .string(type))
            }
        }
    }

    @Test func emptyPromptNegativeSeedAndNULAreFine() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                try await #expect(client.generate("{\"prompt\": \"\", \"seed\": -1}").status == .ok)
                try await #expect(client.generate("{\"prompt\": \"a\\u0000b\"}").status == .ok)
            }
        }
    }

    @Test func failuresOfTheDeviceFailOneRequest() async throws {
        let device = FakeDevice()
        device.fail("odd", with: .invalid(field: "width", reason: "too wide"))
        device.fail("large", with: .outOfDeviceMemory(bytes: 123_456, reason: "CL_MEM_OBJECT_ALLOCATION_FAILURE"))
        device.fail("broken", with: .deviceFailed(reason: "CL_OUT_OF_RESOURCES"))
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                let odd = try await client.generate("{\"prompt\": \"odd\"}")
                #expect(odd.status == .unprocessableContent)
                #expect(odd.firstProblem?["loc"] == ["body", "width"])
                #expect(odd.firstProblem?["msg"] == "Value error, too wide")
                let large = try await client.generate("{\"prompt\": \"large\"}")
                #expect(large.status == .serviceUnavailable)
                #expect(large.detail?.contains("123456 bytes") == true)
                let broken = try await client.generate("{\"prompt\": \"broken\"}")
                #expect(broken.status == .serviceUnavailable)
                #expect(broken.detail == "the device failed: CL_OUT_OF_RESOURCES")
                try await #expect(client.generate("{\"prompt\": \"fine\"}").status == .ok)
            }
        }
    }

    @Test func aPictureTooLargeForTheMemoryIsTheClientsMistakeUnlessItMayFitLater() async throws {
        var memory = PictureMemory(
            size: .init(width: 2048, height: 1024),
            neededBytes: 3 << 30,
            availableBytes: 1 << 30,
            isOneAllocation: false,
            largest: .init(width: 1024, height: 512),
            isPermanent: true
        )
        let device = FakeDevice()
        device.fail("never", with: .doesNotFit(memory))
        memory.isPermanent = false
        device.fail("later", with: .doesNotFit(memory))
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                let never = try await client.generate("{\"prompt\": \"never\"}")
                #expect(never.status == .unprocessableContent)
                #expect(never.firstProblem?["loc"] == ["body", "width"])
                #expect(
                    never.firstProblem?["msg"]
                        == "Value error, a picture of 2048x1024 pixels takes 3.00 GiB of memory besides the model, the device has 1.00 GiB; the largest of this shape that fits is 1024x512"
                )
                let later = try await client.generate("{\"prompt\": \"later\"}")
                #expect(later.status == .serviceUnavailable)
                #expect(later.detail?.contains("1.00 GiB are free at present") == true)
                try await #expect(client.generate("{\"prompt\": \"fine\"}").status == .ok)
            }
        }
    }

    @Test func aStoreThatFailsFailsOneRequest() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let moved = daemon.store.directory + ".moved"
                try FileManager.default.moveItem(atPath: daemon.store.directory, toPath: moved)
                let answer = try await client.generate("{\"prompt\": \"a\"}")
                #expect(answer.status == .serviceUnavailable)
                #expect(answer.detail?.hasPrefix("cannot create ") == true)
                try FileManager.default.moveItem(atPath: moved, toPath: daemon.store.directory)
                try await #expect(client.generate("{\"prompt\": \"a\"}").status == .ok)
            }
        }
    }

    @Test(arguments: [(ENOSPC, 507), (EDQUOT, 507), (EIO, 503), (EACCES, 503)])
    func fullDiskIs507(errno: Int32, status: Int) {
        let error = ImageStoreError(path: "/data/a.png", operation: "write", errno: errno)
        let response = Response(problem: JobFailure.storage(error))
        #expect(response?.status.code == status)
    }

    /// Random bodies are answered 200 or 422, and the daemon lives on.
    @Test func randomBodies() async throws {
        try await withDaemon(configure: { $0.sampling.steps = 1 }) { daemon in
            try await daemon.test { client in
                let good = Array("{\"prompt\": \"a\", \"seed\": 1, \"scale\": 7.5, \"width\": 8, \"height\": 8}".utf8)
                for index in 0..<300 {
                    var bytes = good
                    if index.isMultiple(of: 3) {
                        bytes = (0..<Int.random(in: 0...64)).map { _ in UInt8.random(in: 0...255) }
                    } else {
                        for _ in 0..<Int.random(in: 1...4) {
                            bytes[Int.random(in: bytes.indices)] =
                                Array("{}[]\",:\\0123eE+-.u \n\0\u{7F}é".utf8).randomElement() ?? 0
                        }
                    }
                    let answer = try await client.execute(
                        uri: "/generate",
                        method: .post,
                        body: ByteBuffer(bytes: bytes)
                    )
                    #expect([200, 422].contains(answer.status.code), "\(bytes)")
                }
                try await #expect(client.generate("{\"prompt\": \"a\"}").status == .ok)
            }
        }
    }
}

@Suite struct QueueOverHTTPTests {
    private static let body = "{\"prompt\": \"a\"}"

    @Test func fullQueueIs503WithRetryAfter() async throws {
        let device = FakeDevice()
        try await withDaemon(device, configure: { $0.queue.capacity = 1 }) { daemon in
            try await daemon.test { client in
                device.hold()
                async let first = client.generate(Self.body)
                #expect(await eventually { await daemon.queue.status.isRunning })
                async let second = client.generate(Self.body)
                #expect(await eventually { await daemon.queue.status.waiting == 1 })
                let refused = try await client.generate(Self.body)
                #expect(refused.status == .serviceUnavailable)
                #expect(refused.headers[.retryAfter] == "10")
                let metrics = try await client.get("/metrics").text
                #expect(metrics.contains("diffused_generations_total{outcome=\"refused\"} 1\n"))
                #expect(metrics.contains("diffused_generation_running 1\n"))
                #expect(refused.detail == "The queue is full: 1 requests wait. Try again in about 10 s.")
                device.release()
                try await #expect(first.status == .ok)
                try await #expect(second.status == .ok)
                try await #expect(client.generate(Self.body).status == .ok)
            }
        }
    }

    @Test func orderIsKept() async throws {
        let device = FakeDevice()
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                device.hold()
                await withTaskGroup(of: Void.self) { group in
                    for seed in 0..<8 {
                        group.addTask { _ = try? await client.generate("{\"prompt\": \"a\", \"seed\": \(seed)}") }
                        #expect(
                            await eventually {
                                let status = await daemon.queue.status
                                return status.waiting + (status.isRunning ? 1 : 0) == seed + 1
                            }
                        )
                    }
                    device.release()
                }
                #expect(device.prepared.map(\.seed.bits) == Array(0..<8))
            }
        }
    }

    @Test func drainFinishesWhatRunsAndRefusesTheRest() async throws {
        let device = FakeDevice()
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                device.hold()
                async let running = client.generate(Self.body)
                #expect(await eventually { await daemon.queue.status.isRunning })
                async let waiting = client.generate(Self.body)
                #expect(await eventually { await daemon.queue.status.waiting == 1 })
                _ = await daemon.queue.drain()
                let refused = try await waiting
                #expect(refused.status == .serviceUnavailable)
                #expect(refused.detail == "The service is shutting down.")
                try await #expect(client.generate(Self.body).status == .serviceUnavailable)
                let ready = try await client.get("/health/ready")
                #expect(ready.status == .serviceUnavailable)
                #expect(ready.json?["status"] == "draining")
                try await #expect(client.get("/health/live").status == .ok)
                device.release()
                let finished = try await running
                #expect(finished.status == .ok)
                try await #expect(client.get("/download/\(try downloadID(finished))").status == .ok)
            }
        }
    }

    @Test func nothingIsAdmittedBeforeTheModelIsLoaded() async throws {
        let device = FakeDevice()
        try await withDaemon(device, isLoaded: false) { daemon in
            try await daemon.test { client in
                let ready = try await client.get("/health/ready")
                #expect(ready.status == .serviceUnavailable)
                #expect(ready.json?["status"] == "loading")
                let refused = try await client.generate(Self.body)
                #expect(refused.status == .serviceUnavailable)
                #expect(refused.headers[.retryAfter] == "5")
                try await #expect(client.get("/health/live").text == "{\"status\":\"live\"}")
                device.mayLoad.signal()
                #expect(await eventually { (try? await client.get("/health/ready").status) == .ok })
                #expect(device.warmUp != nil)
                try await #expect(client.generate(Self.body).status == .ok)
            }
        }
    }

    @Test func aCancelledJobStopsAtItsNextStep() async throws {
        let device = FakeDevice()
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                device.hold()
                async let running = client.generate("{\"prompt\": \"a\", \"steps\": 1000}")
                #expect(await eventually { await daemon.queue.status.isRunning })
                let id = try #require(await daemon.queue.records(in: .running, before: nil, limit: 1).first).id
                #expect(await daemon.queue.cancel(id)?.state == .running)
                device.release()
                try await #expect(running.detail == "The request was cancelled.")
                try await #expect(client.generate(Self.body).status == .ok)
            }
        }
    }

    @Test func failedLoadEndsTheEngine() async throws {
        let directory = try TemporaryDirectory()
        var configuration = Configuration()
        configuration.storage.directory = directory.path
        configuration.server.port = 0
        let daemon = try Daemon(configuration: configuration, logger: silentLogger, swaggerDirectories: []) {
            FailingLoader()
        }
        let error = await #expect(throws: LoadFailure.self) {
            try await daemon.run(notifier: nil, onListening: { _ in }, onReady: { _ in })
        }
        #expect(error?.description == "cannot load Models/demo: the device failed: no OpenCL platform")
    }

    @Test func failedWarmUpEndsTheEngine() async throws {
        let device = FakeDevice()
        device.fail("", with: .deviceFailed(reason: "build failed"))
        let directory = try TemporaryDirectory()
        var configuration = Configuration()
        configuration.storage.directory = directory.path
        let daemon = try Daemon(configuration: configuration, logger: silentLogger, swaggerDirectories: []) {
            FakeLoader(device, waits: false)
        }
        let error = await #expect(throws: LoadFailure.self) { try await daemon.engine.run { _ in } }
        #expect(error?.description == "Models/demo is loaded but cannot draw: the device failed: build failed")
    }
}

/// A machine without a device.
private final class FailingLoader: ModelLoader {
    func outline(_ options: PipelineOptions) throws -> ModelOutline { ModelOutline(name: "demo", nativeSize: 64) }

    func load(_ options: PipelineOptions) throws -> any ImageGenerator {
        throw GenerationError.deviceFailed(reason: "no OpenCL platform")
    }

    var availableBytes: Int? { nil }

    func releaseUnusedMemory() {}
}
