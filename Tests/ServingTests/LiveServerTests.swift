// What only shows over a real connection: large bodies, clients that leave, HEAD, shutdown.

import Foundation
import HTTPTypes
import Hummingbird
import HummingbirdTesting
import JSON
import NIOCore
import ServiceLifecycleTestKit
import StableDiffusion
import Synchronization
import TestSupport
import Testing

@testable import Serving

/// A plain TCP connection to a server on this machine.
private final class Connection: Sendable {
    private let descriptor: Int32

    init(port: Int) throws {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(UInt16(port).bigEndian)
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        try #require(result == 0)
        var timeout = timeval(tv_sec: 10, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    func send(_ text: String) {
        let bytes = Array(text.utf8)
        _ = Glibc.send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL))
    }

    /// Everything until the server closes or ten seconds pass, read on a thread of its own.
    func readAll() async -> String {
        await withCheckedContinuation { continuation in
            DispatchQueue.global().async {
                var all: [UInt8] = []
                var buffer = [UInt8](repeating: 0, count: 65536)
                while true {
                    let count = recv(self.descriptor, &buffer, buffer.count, 0)
                    guard count > 0 else { break }
                    all += buffer[..<count]
                }
                continuation.resume(returning: String(decoding: all, as: UTF8.self))
            }
        }
    }
}

@Suite struct LiveServerTests {
    /// Runs the whole daemon on a free port until the test is over.
    private func withServer(
        _ device: FakeDevice = FakeDevice(),
        configure: (inout Configuration) -> Void = { _ in },
        _ body: @escaping @Sendable (_ port: Int, _ daemon: Daemon) async throws -> Void
    ) async throws {
        try await withDaemon(device, configure: configure) { daemon in
            try await daemon.buildApplication().test(.live) { client in
                try await body(try #require(client.port), daemon)
            }
        }
    }

    @Test func aTwentyMegabyteBodyIsRefusedAndTheConnectionLivesOn() async throws {
        try await withDaemon { daemon in
            try await daemon.buildApplication().test(.live) { client in
                let body = "{\"prompt\": \"\(String(repeating: "a", count: 20 << 20))\"}"
                let answer = try await client.generate(body)
                #expect(answer.status == .unprocessableContent)
                #expect(answer.firstProblem?["type"] == "body_too_large")
                #expect(answer.firstProblem?["msg"] == "The body should have at most 16777216 bytes")
                // The same connection.
                try await #expect(client.generate("{\"prompt\": \"a\"}").status == .ok)
                try await #expect(client.get("/", method: .head).status == .ok)
                try await #expect(client.get("/").status == .ok)
            }
        }
    }

    @Test func aHopelessBodyIsAnsweredAtOnceAndTheConnectionClosed() async throws {
        try await withServer { port, _ in
            let connection = try Connection(port: port)
            connection.send("POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n{")
            let answer = await connection.readAll()
            #expect(answer.hasPrefix("HTTP/1.1 422 "))
            #expect(answer.contains("connection: close") || answer.contains("Connection: close"))
            #expect(answer.contains("body_too_large"))
        }
    }

    @Test func aClientThatAsksFirstHearsNo() async throws {
        try await withServer { port, _ in
            let connection = try Connection(port: port)
            connection.send(
                """
                POST /generate HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n\
                Content-Length: 50000000\r\n\r\n
                """
            )
            #expect(await connection.readAll().hasPrefix("HTTP/1.1 422 "))
        }
    }

    @Test func aClientThatLeavesDoesNotStopItsPicture() async throws {
        let device = FakeDevice()
        try await withServer(device) { port, daemon in
            device.hold()
            do {
                let connection = try Connection(port: port)
                connection.send(
                    "POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n{\"prompt\": \"a\"}"
                )
                #expect(await eventually { await daemon.queue.status.isRunning })
            }
            // The connection is closed now.
            device.release()
            #expect(
                await eventually {
                    let names = try? FileManager.default.contentsOfDirectory(atPath: daemon.store.directory)
                    return names?.contains { $0.hasSuffix(".png") } == true
                }
            )
            let again = try Connection(port: port)
            again.send("POST /generate HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 15\r\n\r\n")
            again.send("{\"prompt\": \"b\"}")
            #expect(await again.readAll().hasPrefix("HTTP/1.1 200 "))
        }
    }

    /// Where that is configured: it ends with its present step, or without having begun.
    @Test func aClientThatLeavesCanStopItsPicture() async throws {
        let device = FakeDevice()
        try await withServer(device, configure: { $0.queue.onDisconnect = .cancel }) { port, daemon in
            func ask(_ prompt: String) throws -> Connection {
                let connection = try Connection(port: port)
                let body = "{\"prompt\": \"\(prompt)\", \"steps\": 50}"
                connection.send(
                    "POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)"
                )
                return connection
            }
            let stays = try ask("stays")
            #expect(await stays.readAll().hasPrefix("HTTP/1.1 200 "))
            device.hold()
            do {
                let running = try ask("runs")
                #expect(await eventually { await daemon.queue.status.isRunning })
                let waiting = try ask("waits")
                #expect(await eventually { await daemon.queue.status.waiting == 1 })
                withExtendedLifetime((running, waiting)) {}
            }
            // Both connections are closed now.
            #expect(await eventually { await daemon.queue.records(in: .cancelled, before: nil, limit: 9).count == 1 })
            device.release()
            #expect(await eventually { await daemon.queue.records(in: .cancelled, before: nil, limit: 9).count == 2 })
            #expect(device.prepared.map(\.prompt) == ["stays", "runs"])
        }
    }

    @Test func aBodyThatBreaksOffDoesNoHarm() async throws {
        try await withServer { port, _ in
            for text in [
                "POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{", "GET", "\0\0\0\0\r\n\r\n",
            ] {
                let connection = try Connection(port: port)
                connection.send(text)
            }
            let connection = try Connection(port: port)
            connection.send("GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            #expect(await connection.readAll().hasSuffix("{\"status\":\"live\"}"))
        }
    }

    @Test func randomBytesAreNoHTTP() async throws {
        try await withServer { port, _ in
            for _ in 0..<50 {
                let connection = try Connection(port: port)
                let bytes = (0..<Int.random(in: 1...200)).map { _ in UInt8.random(in: 0...255) }
                connection.send(String(decoding: bytes, as: UTF8.self) + "\r\n\r\n")
            }
            let connection = try Connection(port: port)
            connection.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            #expect(await connection.readAll().hasPrefix("HTTP/1.1 200 "))
        }
    }

    @Test func takenPortIsSaidClearly() async throws {
        try await withServer { port, daemon in
            var configuration = daemon.configuration
            configuration.server.port = port
            let other = try Daemon(configuration: configuration, logger: silentLogger, swaggerDirectories: []) {
                FakeLoader(FakeDevice(), waits: false)
            }
            let error = await #expect(throws: ListenFailure.self) {
                try await other.run(notifier: nil, onListening: { _ in }, onReady: { _ in })
            }
            #expect(
                error?.description == """
                    cannot listen on 127.0.0.1:\(port): Address already in use. Another program, or another diffused, \
                    listens there; choose another server.port.
                    """
            )
        }
    }

    /// SIGTERM in the middle of a picture: it is finished, others hear 503 over new connections, and the daemon ends well.
    @Test func shutdownFinishesTheRunningPicture() async throws {
        let device = FakeDevice()
        let directory = try TemporaryDirectory()
        var configuration = Configuration()
        configuration.server.port = 0
        configuration.storage.directory = directory.path
        let daemon = try Daemon(configuration: configuration, logger: silentLogger, swaggerDirectories: []) {
            FakeLoader(device, waits: false)
        }
        let (ports, havePort) = AsyncStream<Int>.makeStream()
        let (readiness, isReady) = AsyncStream<Void>.makeStream()
        defer { device.release() }
        try await testGracefulShutdown { shutdown in
            async let end: Void = daemon.run(
                notifier: nil,
                onListening: { havePort.yield($0) },
                onReady: { _ in isReady.yield() }
            )
            let port = try #require(await ports.first { _ in true })
            _ = await readiness.first { _ in true }
            let request = "POST /generate HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 15\r\n\r\n"
            let body = "{\"prompt\": \"a\"}"

            device.hold()
            let running = try Connection(port: port)
            running.send(request + body)
            #expect(await eventually { await daemon.queue.status.isRunning })
            let waiting = try Connection(port: port)
            waiting.send(request + body)
            #expect(await eventually { await daemon.queue.status.waiting == 1 })

            shutdown.triggerGracefulShutdown()
            #expect(await waiting.readAll().hasPrefix("HTTP/1.1 503 "))
            let late = try Connection(port: port)
            late.send(request + body)
            #expect(await late.readAll().contains("{\"detail\":\"The service is shutting down.\"}"))

            device.release()
            #expect(await running.readAll().hasPrefix("HTTP/1.1 200 "))
            try await end
        }
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory.path).count == 1)
    }

    /// Nobody has to wait for a model that is still being loaded when the daemon is told to stop.
    @Test func shutdownDoesNotWaitForALoad() async throws {
        let device = FakeDevice()
        let directory = try TemporaryDirectory()
        var configuration = Configuration()
        configuration.server.port = 0
        configuration.storage.directory = directory.path
        let daemon = try Daemon(configuration: configuration, logger: silentLogger, swaggerDirectories: []) {
            FakeLoader(device)
        }
        defer { device.mayLoad.signal() }
        let (ports, havePort) = AsyncStream<Int>.makeStream()
        try await testGracefulShutdown { shutdown in
            async let end: Void = daemon.run(
                notifier: nil,
                onListening: { havePort.yield($0) },
                onReady: { _ in Issue.record("the model is not loaded") }
            )
            _ = await ports.first { _ in true }
            shutdown.triggerGracefulShutdown()
            try await end
        }
    }
}

@Suite struct RequestBodyReaderTests {
    private func request(_ chunks: Int, every interval: Duration, headers: HTTPFields = [:]) -> Request {
        let (body, source) = RequestBody.makeStream()
        Task {
            for _ in 0..<chunks {
                try? await Task.sleep(for: interval)
                await source.yield(ByteBuffer(string: "x"))
            }
            source.finish()
        }
        let head = HTTPRequest(
            method: .post,
            scheme: "http",
            authority: "a",
            path: "/generate",
            headerFields: headers
        )
        return Request(head: head, body: body)
    }

    @Test func bodyOfTheLimitIsRead() async throws {
        let reader = RequestBodyReader(limit: 3)
        #expect(try await reader.read(request(3, every: .zero)) == Array("xxx".utf8))
        await #expect(throws: RequestProblems.self) { try await reader.read(request(4, every: .zero)) }
    }

    @Test func dripFedBodyIsCutOff() async throws {
        let reader = RequestBodyReader(limit: 1000, deadline: .milliseconds(50))
        let error = await #expect(throws: ConnectionClosingError.self) {
            try await reader.read(request(100, every: .milliseconds(20)))
        }
        #expect((error?.cause as? HTTPProblem)?.status == .requestTimeout)
    }
}
