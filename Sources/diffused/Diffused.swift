// The command line: which command runs, and how a failure becomes an exit code. 0 done, 1 failure, 2 wrong usage or
// configuration.

internal import ArgumentParser
internal import Foundation
internal import Serving

/// The `diffused` program.
@main
struct Diffused: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "diffused",
        abstract: "Draws pictures from text with Stable Diffusion on any OpenCL device.",
        version: softwareVersion,
        subcommands: [
            ServeCommand.self, GenerateCommand.self, PullCommand.self, InspectCommand.self, DevicesCommand.self,
            CheckConfigCommand.self, BenchmarkCommand.self,
        ]
    )

    static func main() async {
        do {
            var command = try parseAsRoot()
            if var command = command as? any AsyncParsableCommand {
                try await command.run()
            } else {
                try command.run()
            }
            // What was printed may have gone nowhere, to a full disk for instance, and whoever reads it must not go on.
            guard fflush(nil) == 0 else {
                throw OutputError("cannot write to standard output: \(String(cString: strerror(errno)))")
            }
        } catch {
            Foundation.exit(report(error))
        }
    }

    /// Says what went wrong and gives the exit code for it.
    static func report(_ error: any Error) -> Int32 {
        switch error {
        case let error as ConfigurationError:
            write("diffused: \(error)\n")
            return 2
        case let error as UsageError:
            write("diffused: \(error)\n")
            return 2
        case let code as ExitCode:
            return code.rawValue
        case _ where exitCode(for: error) == .success:
            // Help and version are errors to the parser, and answers to the person.
            print(fullMessage(for: error))
            return 0
        case _ where exitCode(for: error) == .validationFailure:
            write(fullMessage(for: error) + "\n")
            return 2
        default:
            write("diffused: \(error)\n")
            return 1
        }
    }

    /// Writes to standard error.
    static func write(_ text: String) {
        let bytes = Array(text.utf8)
        // Nobody can be told that standard error is gone.
        _ = Foundation.write(STDERR_FILENO, bytes, bytes.count)
    }
}

/// An argument that makes no sense with the configuration.
struct UsageError: Error, CustomStringConvertible {
    let description: String
}
