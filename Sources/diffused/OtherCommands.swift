// The small commands: `devices`, `check-config` and `benchmark`.

internal import ArgumentParser
internal import Serving
internal import StableDiffusion

/// Lists OpenCL devices.
struct DevicesCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "devices",
        abstract: "Lists OpenCL platforms and devices, what each can do, and which would be chosen and why."
    )

    @Option(
        help: "Configuration file whose device is marked. Default: config.yaml here, else /etc/diffused/config.yaml."
    )
    var config: String?

    func run() throws {
        let configuration = try Configuration.load(file: config ?? Configuration.defaultFile())
        print(try describeDevices(configuration.pipelineOptions.device))
    }
}

/// Checks a configuration.
struct CheckConfigCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check-config",
        abstract: "Checks a configuration file and shows what it and the environment come to."
    )

    @Argument(help: "The file. Default: config.yaml here, else /etc/diffused/config.yaml.")
    var file: String?

    func run() throws {
        let path = file ?? Configuration.defaultFile()
        let configuration = try Configuration.load(file: path)
        print("# \(path ?? "no file, built-in values"): valid")
        print(configuration.yaml, terminator: "")
    }
}

/// Measures the pipeline.
struct BenchmarkCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "benchmark",
        abstract: "Measures each part of the pipeline on this device."
    )

    @OptionGroup var model: ModelOptions

    @Option(help: "Width in pixels, a multiple of 8. Default: the model's native size.")
    var width: Int?

    @Option(help: "Height in pixels, a multiple of 8. Default: the model's native size.")
    var height: Int?

    @Option(help: "Denoising steps to measure.")
    var steps = 10

    @Flag(help: "Print one JSON object.")
    var json = false

    @Flag(
        help: """
            Measure every operator at the shapes of Stable Diffusion 1.5 instead, on made-up numbers, and what the device can do \
            at most; reads no model.
            """
    )
    var operators = false

    func run() throws {
        let configuration = try model.load()
        _ = try width.map { try configuration.checkedSide($0, option: "--width", limit: configuration.limits.width) }
        _ = try height.map { try configuration.checkedSide($0, option: "--height", limit: configuration.limits.height) }
        _ = try configuration.checkedSteps(steps)
        if operators {
            let report = try OperatorReport(
                configuration.pipelineOptions,
                width: width ?? 512,
                height: height ?? 512,
                logger: makeLogger(configuration)
            )
            return print(try json ? report.json() : report.table)
        }
        let report = try BenchmarkReport(
            configuration.pipelineOptions,
            width: width,
            height: height,
            steps: steps,
            logger: makeLogger(configuration)
        )
        print(try json ? report.json() : report.table)
    }
}
