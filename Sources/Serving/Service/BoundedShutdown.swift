// Keeps a client from holding up the end of the daemon: a server that shuts down waits for every request that has begun,
// and one whose body never ends would keep it waiting as long as the client likes.

internal import ServiceLifecycle

/// A service that is cancelled when it has not stopped so long after it was asked to.
struct BoundedShutdown<Wrapped: Service>: Service {
    let service: Wrapped
    /// Time for answers that are under way.
    var grace: Duration = .seconds(5)

    func run() async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask { try await service.run() }
            group.addTask {
                try await gracefulShutdown()
                try await Task.sleep(for: grace)
            }
            // Whichever comes first: the service's own end, or the end of its time.
            try await group.next()
            group.cancelAll()
        }
    }
}
