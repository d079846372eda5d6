// The daemon's manners towards systemd: notifications over a real socket, the watchdog's judgement, log lines.

import Foundation
import Logging
import ServiceLifecycle
import ServiceLifecycleTestKit
import Synchronization
import TestSupport
import Testing

@testable import Serving

/// A datagram socket such as systemd listens on.
private final class NotifySocket: Sendable {
    let address: String
    private let descriptor: Int32

    /// Binds a path or, with a leading `@`, an abstract name.
    init(_ address: String) throws {
        self.address = address
        descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0)
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        var bytes = Array(address.utf8)
        let isAbstract = bytes[0] == UInt8(ascii: "@")
        if isAbstract { bytes[0] = 0 }
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
        let length = socklen_t(2 + bytes.count + (isAbstract ? 0 : 1))
        let result = withUnsafePointer(to: &name) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(descriptor, $0, length) }
        }
        try #require(result == 0)
        var timeout = timeval(tv_sec: 120, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    /// The next datagram; nil after two minutes.
    ///
    /// On a busy machine other tests can hold every thread for many seconds.
    ///
    /// Waits on a thread of its own, not on one that the daemon needs.
    func receive() async -> String? {
        await withCheckedContinuation { continuation in
            DispatchQueue.global().async {
                var buffer = [UInt8](repeating: 0, count: 4096)
                let count = recv(self.descriptor, &buffer, buffer.count, 0)
                continuation.resume(returning: count < 0 ? nil : String(decoding: buffer[..<count], as: UTF8.self))
            }
        }
    }
}

@Suite struct ServiceNotifierTests {
    @Test func noSocketNoNotifier() {
        #expect(ServiceNotifier(environment: [:]) == nil)
        #expect(ServiceNotifier(environment: ["NOTIFY_SOCKET": "relative"]) == nil)
    }

    @Test func messagesArriveOverBothKindsOfSocket() async throws {
        let directory = try TemporaryDirectory()
        for address in [directory.path + "/notify", "@diffused-test-\(UUID().uuidString)"] {
            let socket = try NotifySocket(address)
            let notifier = try #require(ServiceNotifier(environment: ["NOTIFY_SOCKET": address]))
            #expect(notifier.send(["READY=1", "STATUS=two\nlines"]))
            #expect(await socket.receive() == "READY=1\nSTATUS=two lines")
            #expect(notifier.watchdogInterval == nil)
        }
    }

    @Test func nobodyListening() throws {
        let notifier = try #require(ServiceNotifier(environment: ["NOTIFY_SOCKET": "/nonexistent/notify"]))
        #expect(!notifier.send(["READY=1"]))
        let long = try #require(
            ServiceNotifier(environment: ["NOTIFY_SOCKET": "/" + String(repeating: "a", count: 200)])
        )
        #expect(!long.send(["READY=1"]))
    }

    @Test(
        arguments: [
            (["WATCHDOG_USEC": "30000000"], Duration.seconds(30)),
            (["WATCHDOG_USEC": "1000", "WATCHDOG_PID": String(getpid())], .milliseconds(1)),
            (["WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"], nil), (["WATCHDOG_USEC": "0"], nil),
            (["WATCHDOG_USEC": "soon"], nil),
        ] as [([String: String], Duration?)]
    )
    func watchdogInterval(environment: [String: String], interval: Duration?) throws {
        let all = environment.merging(["NOTIFY_SOCKET": "@x"]) { $1 }
        #expect(try #require(ServiceNotifier(environment: all)).watchdogInterval == interval)
    }

    /// The whole life of a daemon as the service manager sees it.
    @Test func lifeOfADaemon() async throws {
        let address = "@diffused-test-\(UUID().uuidString)"
        let socket = try NotifySocket(address)
        let notifier = ServiceNotifier(environment: ["NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"])
        let directory = try TemporaryDirectory()
        var configuration = Configuration()
        configuration.server.port = 0
        configuration.storage.directory = directory.path
        let device = FakeDevice()
        let daemon = try Daemon(configuration: configuration, logger: silentLogger, swaggerDirectories: []) {
            FakeLoader(device)
        }
        let run = Task {
            try await daemon.run(notifier: notifier, onListening: { _ in device.mayLoad.signal() }, onReady: { _ in })
        }
        var seen: [String] = []
        while let message = await socket.receive() {
            seen.append(message)
            if seen.contains(where: { $0.contains("READY=1") }), seen.last == "WATCHDOG=1" { break }
        }
        #expect(seen.first { $0.contains("EXTEND_TIMEOUT_USEC=") } == "EXTEND_TIMEOUT_USEC=10000000\nWATCHDOG=1")
        #expect(seen.contains("READY=1\nSTATUS=Drawing with demo on no device"))
        #expect(seen.last == "WATCHDOG=1")

        run.cancel()
        _ = try? await run.value
    }
}

@Suite struct EngineActivityTests {
    @Test func aLongUnitIsAStall() {
        let activity = EngineActivity()
        #expect(activity.stall() == nil)
        activity.during(.step, pixels: 512 * 512) {
            #expect(activity.stall() == nil)
            #expect(activity.stall(at: .now + .seconds(599)) == nil)
            #expect(activity.stall(at: .now + .seconds(601)) == "a denoising step has taken more than 600 seconds")
        }
        #expect(activity.stall(at: .now + .seconds(601)) == nil)
    }

    @Test func largePicturesMayTakeLonger() {
        #expect(EngineActivity.allowance(for: .step, pixels: 64 * 64) == .seconds(600))
        #expect(EngineActivity.allowance(for: .step, pixels: 1024 * 1024) == .seconds(4800))
        #expect(EngineActivity.allowance(for: .load, pixels: 0) == .seconds(1800))
    }

    /// A hung device must cost the daemon its pings, and its liveness.
    @Test func aStallStopsThePings() async throws {
        let address = "@diffused-test-\(UUID().uuidString)"
        let socket = try NotifySocket(address)
        let notifier = try #require(
            ServiceNotifier(environment: ["NOTIFY_SOCKET": address, "WATCHDOG_USEC": "40000"])
        )
        let activity = EngineActivity()
        let queue = JobQueue(capacity: 1, metrics: Metrics())
        let supervisor = SupervisorService(notifier: notifier, queue: queue, activity: activity, logger: silentLogger)
        let task = Task { try await supervisor.run() }
        #expect(await socket.receive()?.contains("WATCHDOG=1") == true)
        activity.begin(.step, since: .now - .seconds(700))
        var messages: [String] = []
        while messages.count < 5, let message = await socket.receive() { messages.append(message) }
        #expect(messages.count == 5)
        // A ping may have been under way when the hang began.
        #expect(
            messages.suffix(3).allSatisfy {
                $0 == "STATUS=The device hangs: a denoising step has taken more than 600 seconds"
            }
        )
        task.cancel()
        _ = try? await task.value
    }
}

@Suite struct BoundedShutdownTests {
    /// What waits for a client that never finishes its request.
    private final class StubbornService: Service {
        let isCancelled = Mutex(false)

        func run() async throws {
            do {
                try await Task.sleep(for: .seconds(600))
            } catch {
                isCancelled.withLock { $0 = true }
                throw error
            }
        }
    }

    @Test func aServiceThatDoesNotStopIsCancelled() async throws {
        let service = StubbornService()
        await testGracefulShutdown { trigger in
            await withTaskGroup(of: Void.self) { group in
                group.addTask {
                    _ = try? await BoundedShutdown(service: service, grace: .milliseconds(50)).run()
                }
                trigger.triggerGracefulShutdown()
            }
        }
        #expect(service.isCancelled.withLock { $0 })
    }

    @Test func itsOwnEndIsTheEnd() async throws {
        struct Failing: Service, Error {
            func run() async throws { throw self }
        }
        await #expect(throws: Failing.self) { try await BoundedShutdown(service: Failing()).run() }
    }
}

@Suite struct LogHandlerTests {
    private func line(_ style: StandardErrorLogHandler.Style, _ level: Logger.Level, _ message: String) -> String {
        let handler = StandardErrorLogHandler(level: .info, style: style)
        let event = LogEvent(
            level: level,
            message: "\(message)",
            metadata: ["b": "two words", "a": "1"],
            source: nil,
            file: "f",
            function: "g",
            line: 1
        )
        return handler.line(for: event, at: Date(timeIntervalSince1970: 0))
    }

    @Test func terminalLine() {
        #expect(line(.terminal, .info, "hello") == "1970-01-01T00:00:00Z info hello a=1 b=\"two words\"")
    }

    @Test(arguments: [
        (Logger.Level.debug, 7), (.info, 6), (.notice, 5), (.warning, 4), (.error, 3), (.critical, 2),
    ])
    func journalPriorities(level: Logger.Level, priority: Int) {
        #expect(line(.journal, level, "two\nlines") == "<\(priority)>two\\nlines a=1 b=\"two words\"")
    }

    @Test func styleFollowsTheStream() {
        #expect(StandardErrorLogHandler.style(environment: [:]) == .terminal)
        #expect(StandardErrorLogHandler.style(environment: ["JOURNAL_STREAM": "1:0"]) == .terminal)
    }
}
