// Keeps the service manager patient while there is reason to be, and only then: pings its watchdog while the engine makes
// progress, and asks for more time while the model loads or the last picture is finished.

internal import Logging
internal import ServiceLifecycle

/// Pings until the shutdown is over, or until the engine hangs.
struct SupervisorService: Service {
    let notifier: ServiceNotifier?
    let queue: JobQueue
    let activity: EngineActivity
    let logger: Logger

    /// Time between looks when no watchdog sets the pace.
    private static let defaultInterval = Duration.seconds(5)

    func run() async throws {
        guard let notifier else {
            try await gracefulShutdown()
            return
        }
        // Half the interval, as sd_watchdog_enabled(3) recommends.
        let interval = min(notifier.watchdogInterval.map { $0 / 2 } ?? Self.defaultInterval, Self.defaultInterval)
        var wasStalled = false
        let looks = AsyncStream<Void> {
            (try? await Task.sleep(for: interval)) == nil ? nil : ()
        }
        await supervise(notifier, interval: interval, wasStalled: &wasStalled)
        for await _ in looks.cancelOnGracefulShutdown() {
            await supervise(notifier, interval: interval, wasStalled: &wasStalled)
        }
    }

    private func supervise(_ notifier: ServiceNotifier, interval: Duration, wasStalled: inout Bool) async {
        // A hung device must stop the pings, so that the service manager starts the daemon anew. A slow one must not,
        // which is why the bound is far above what any unit of work takes.
        if let stall = activity.stall() {
            if !wasStalled { logger.critical("the device hangs", metadata: ["reason": "\(stall)"]) }
            wasStalled = true
            notifier.send(["STATUS=The device hangs: \(stall)"])
            return
        }
        wasStalled = false
        // Asking the queue shows that tasks still run.
        var lines = await queue.status.phase == .serving ? [] : [Self.extension(after: interval)]
        if notifier.watchdogInterval != nil { lines.append("WATCHDOG=1") }
        if !lines.isEmpty { notifier.send(lines) }
    }

    /// Time to start or to stop is extended well past the next look.
    private static func `extension`(after interval: Duration) -> String {
        let microseconds = (interval * 6).components.seconds * 1_000_000
        return "EXTEND_TIMEOUT_USEC=\(max(microseconds, 10_000_000))"
    }
}
