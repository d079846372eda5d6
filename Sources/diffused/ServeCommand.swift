// `diffused serve`: the daemon.

internal import ArgumentParser
internal import Foundation
internal import Logging
internal import Serving
internal import StableDiffusion
internal import Synchronization

/// Runs the daemon until SIGTERM or SIGINT.
struct ServeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "serve",
        abstract: "Serves pictures over HTTP until SIGTERM or SIGINT."
    )

    @OptionGroup var options: ConfigurationOptions

    func run() async throws {
        let code: Int32
        do {
            try await serve()
            code = 0
        } catch {
            code = Diffused.report(error)
        }
        // The device's thread may still be inside a driver, which must not meet the destructors that `exit` runs.
        fflush(nil)
        _exit(code)
    }

    private func serve() async throws {
        // A client or a terminal that is gone is no reason to die.
        signal(SIGPIPE, SIG_IGN)
        let configuration = try options.load()
        let logger = makeLogger(configuration)
        let notifier = ServiceNotifier()
        notifier?.send(["STATUS=Loading \(configuration.model.path)"])
        let daemon = try Daemon(configuration: configuration, logger: logger) { PipelineLoader(logger: logger) }
        let greeter = Greeter(configuration: configuration, logger: logger)
        try await daemon.run(
            notifier: notifier,
            onListening: { greeter.listening(on: $0) },
            onReady: { greeter.ready($0) }
        )
        logger.info("stopped")
    }
}

/// Tells where the daemon listens and, on a terminal, what to type next.
private final class Greeter: Sendable {
    private let configuration: Configuration
    private let logger: Logger
    /// The port, once it is known.
    private let port = Mutex<Int?>(nil)

    init(configuration: Configuration, logger: Logger) {
        self.configuration = configuration
        self.logger = logger
    }

    func listening(on port: Int) {
        self.port.withLock { $0 = port }
        logger.info("listening", metadata: ["address": "\(address)"])
    }

    func ready(_ model: ModelDescription) {
        guard isatty(STDERR_FILENO) == 1 else { return }
        Diffused.write(
            """

            Ready: \(model.name) on \(model.deviceName). In another terminal:

              curl -sJO \(address)/download/$(curl -s \(address)/generate \\
                -d '{"prompt": "a red circle on a blue background"}' | cut -d'"' -f4)

            or open \(address)/docs in a browser. Ctrl-C stops the daemon.


            """
        )
    }

    /// The address a person can type.
    private var address: String {
        let host = configuration.server.host
        let reachable = ["0.0.0.0", "::", "*"].contains(host) ? "localhost" : host
        let port = port.withLock { $0 } ?? configuration.server.port
        return "http://\(reachable.contains(":") ? "[\(reachable)]" : reachable):\(port)"
    }
}
