// The HTTP side put together: the route table, the router made from it and the server around it. Tests build exactly
// this.

public import Hummingbird
internal import Logging
internal import NIOCore

extension Daemon {
    /// A connection on which nothing comes for this long, while a request is awaited or incomplete, is closed.
    ///
    /// One that waits for an answer is never closed: pictures may take minutes.
    private static let idleTimeout = TimeAmount.seconds(60)

    /// The HTTP application in front of this service.
    ///
    /// - Parameter onListening: called with the port once connections are accepted.
    public func buildApplication(
        onListening: @escaping @Sendable (_ port: Int) async -> Void = { _ in }
    ) -> some ApplicationProtocol {
        let routes = routes()
        let router = Router(options: .autoGenerateHeadEndpoints)
        router.add(middleware: RequestMiddleware(metrics: metrics, routes: RouteIndex(routes)))
        for route in routes {
            router.on(RouterPath(route.path), method: route.method) { request, context in
                try await route.handler(request, context)
            }
        }
        var serverLogger = logger
        // The server's own news at info would repeat what the daemon says in its own words.
        if logger.logLevel > .debug { serverLogger.logLevel = max(logger.logLevel, .notice) }
        let server = configuration.server
        return Application(
            router: router,
            server: .http1(configuration: .init(idleTimeout: Self.idleTimeout)),
            configuration: .init(
                address: .hostname(server.host, port: server.port),
                serverName: "diffused/\(softwareVersion)"
            ),
            onServerRunning: { channel in await onListening(channel.localAddress?.port ?? server.port) },
            logger: serverLogger
        )
    }

    /// Every route there is.
    func routes() -> [Route] {
        pictureRoutes + jobRoutes + statusRoutes + documentationRoutes
    }
}
