// The composition root: everything the daemon is made of, and its life from load to shutdown.

internal import Foundation
public import Logging
internal import NIOCore
internal import ServiceLifecycle
public import StableDiffusion
internal import UnixSignals

/// The daemon could not begin to listen.
public struct ListenFailure: Error, CustomStringConvertible {
    /// Host and port, and why it failed, in one sentence.
    public let description: String
}

/// A configured daemon: a queue, an engine behind it, a store for the pictures, and HTTP in front.
public struct Daemon: Sendable {
    /// What it was configured with.
    public let configuration: Configuration
    let queue: JobQueue
    let engine: Engine
    let store: ImageStore
    let activity = EngineActivity()
    let catalogue: ModelCatalogue
    let metrics = Metrics()
    let documentationPages: DocumentationPages
    let logger: Logger

    /// Puts the parts together and opens the image store.
    ///
    /// Nothing is loaded yet.
    ///
    /// - Parameters:
    ///   - configuration: a valid configuration.
    ///   - logger: where the daemon writes.
    ///   - makeLoader: makes what loads models; called once, on the device's thread.
    /// - Throws: `ImageStoreError` when pictures cannot be kept.
    public init(
        configuration: Configuration,
        logger: Logger,
        makeLoader: @escaping Engine.LoaderFactory
    ) throws {
        try self.init(
            configuration: configuration,
            logger: logger,
            swaggerDirectories: DocumentationPages.standardDirectories(),
            makeLoader: makeLoader
        )
    }

    init(
        configuration: Configuration,
        logger: Logger,
        swaggerDirectories: [String],
        makeLoader: @escaping Engine.LoaderFactory
    ) throws {
        self.configuration = configuration
        self.logger = logger
        store = try ImageStore(directory: configuration.storage.directory)
        queue = JobQueue(capacity: configuration.queue.capacity, metrics: metrics)
        catalogue = ModelCatalogue(names: configuration.allModels.map(\.name))
        documentationPages = DocumentationPages(directories: swaggerDirectories)
        engine = Engine(
            makeLoader: makeLoader,
            configuration: configuration,
            catalogue: catalogue,
            queue: queue,
            store: store,
            activity: activity,
            metrics: metrics,
            logger: logger
        )
    }

    /// Serves until SIGTERM or SIGINT, then finishes the running picture and returns.
    ///
    /// The listening socket stays open while the last picture is made, so that clients hear 503 and not nothing.
    ///
    /// - Parameters:
    ///   - notifier: the service manager that started the process, if one did.
    ///   - onListening: called with the port once connections are accepted.
    ///   - onReady: called once pictures can be asked for.
    /// - Throws: `ListenFailure`, `LoadFailure`.
    public func run(
        notifier: ServiceNotifier?,
        onListening: @escaping @Sendable (_ port: Int) async -> Void,
        onReady: @escaping @Sendable (ModelDescription) async -> Void
    ) async throws {
        let application = buildApplication(onListening: onListening)
        let engineService = EngineService(daemon: self, notifier: notifier, onReady: onReady)
        let supervisor = SupervisorService(notifier: notifier, queue: queue, activity: activity, logger: logger)
        // A service group stops its services from the last to the first, each when the one before it has stopped: the
        // engine finishes its picture while the application still answers and the supervisor still pings.
        let group = ServiceGroup(
            configuration: .init(
                services: [
                    .init(service: supervisor), .init(service: BoundedShutdown(service: application)),
                    // A model that does not load ends the rest in order, without the noise of cancelled connections.
                    .init(service: engineService, failureTerminationBehavior: .gracefullyShutdownGroup),
                ],
                gracefulShutdownSignals: [.sigterm, .sigint],
                logger: quietLogger
            )
        )
        do {
            try await group.run()
        } catch let error as IOError {
            throw listenFailure(String(cString: strerror(error.errnoCode)), code: error.errnoCode)
        } catch let error as SocketAddressError.UnknownHost {
            throw listenFailure(error.errorDescription, code: EADDRNOTAVAIL)
        } catch let error as SocketAddressError {
            throw listenFailure("\(error)", code: 0)
        }
    }

    private var quietLogger: Logger {
        var logger = logger
        if logger.logLevel > .trace { logger.logLevel = max(logger.logLevel, .notice) }
        return logger
    }

    private func listenFailure(_ reason: String, code: Int32) -> ListenFailure {
        let server = configuration.server
        let advice =
            switch code {
            case EADDRINUSE: " Another program, or another diffused, listens there; choose another server.port."
            case EACCES: " Ports below 1024 need a privilege; choose a server.port from 1024 on."
            case EADDRNOTAVAIL: " server.host must be an address of this machine, or 0.0.0.0 for all of them."
            default: ""
            }
        return ListenFailure(description: "cannot listen on \(server.host):\(server.port): \(reason).\(advice)")
    }
}

/// Runs the engine as a service that can be asked to stop.
private struct EngineService: Service {
    let daemon: Daemon
    let notifier: ServiceNotifier?
    let onReady: @Sendable (ModelDescription) async -> Void

    func run() async throws {
        // The engine's thread may sit in a device call that nothing can interrupt, so the engine runs in a task of its
        // own, and this one waits for its end or for a reason not to wait any longer.
        let (ended, end) = AsyncThrowingStream<Never, any Error>.makeStream()
        Task {
            do {
                try await daemon.engine.run { model in
                    notifier?.send(["READY=1", "STATUS=Drawing with \(model.name) on \(model.deviceName)"])
                    await onReady(model)
                }
                end.finish()
            } catch {
                end.finish(throwing: error)
            }
        }
        try await withGracefulShutdownHandler {
            for try await _ in ended {}
        } onGracefulShutdown: {
            daemon.logger.info("shutting down")
            notifier?.send(["STOPPING=1", "STATUS=Finishing the running picture"])
            Task {
                // Nobody waits for a model that is still being loaded.
                if await daemon.queue.drain().wasLoading { end.finish() }
            }
        }
    }
}
