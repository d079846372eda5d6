// Arguments that several commands share, and how they meet the configuration.

public import ArgumentParser
internal import Logging
internal import Serving
public import StableDiffusion

extension Precision: ExpressibleByArgument {}
extension PromptSyntax: ExpressibleByArgument {}
extension TimestepSpacing: ExpressibleByArgument {}
extension NoiseSource: ExpressibleByArgument {}

extension SamplerName: ExpressibleByArgument {
    /// Reads any name of a sampler.
    public init?(argument: String) {
        self.init(argument)
    }
}

/// A schedule, or the word for the checkpoint's own.
struct ScheduleArgument: ExpressibleByArgument {
    let schedule: SigmaSchedule?

    init?(argument: String) {
        if argument.lowercased() == "auto" {
            schedule = nil
        } else if let named = SigmaSchedule(name: argument) {
            schedule = named
        } else {
            return nil
        }
    }

    static var allValueStrings: [String] { ["auto"] + SigmaSchedule.allCases.map(\.rawValue) }
}

/// A 64-bit seed, signed or unsigned.
struct SeedArgument: ExpressibleByArgument {
    let seed: Seed

    init?(argument: String) {
        if let value = UInt64(argument) {
            seed = Seed(value)
        } else if let value = Int64(argument) {
            seed = Seed(value)
        } else {
            return nil
        }
    }
}

/// A LoRA as `NAME` or `NAME:WEIGHT`.
struct LoRAArgument: ExpressibleByArgument {
    let reference: LoRAReference

    init?(argument: String) {
        guard let colon = argument.lastIndex(of: ":") else {
            guard !argument.isEmpty else { return nil }
            reference = LoRAReference(name: argument)
            return
        }
        guard let weight = Double(argument[argument.index(after: colon)...]),
            abs(weight) <= LoRAReference.maximumWeight, colon != argument.startIndex
        else { return nil }
        reference = LoRAReference(name: String(argument[..<colon]), weight: weight)
    }
}

/// How far an image is continued, as `SIDE:PIXELS` with commas in between.
struct OutpaintArgument: ExpressibleByArgument {
    let outpainting: Outpainting

    init?(argument: String) {
        let members: [Substring: WritableKeyPath<Outpainting, Int>] = [
            "left": \.left, "right": \.right, "top": \.top, "bottom": \.bottom, "overlap": \.overlap,
        ]
        var result = Outpainting()
        for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
            let words = part.split(separator: ":", omittingEmptySubsequences: false)
            guard words.count == 2, let member = members[words[0]], let pixels = Int(words[1]),
                0...Outpainting.maximumMargin ~= pixels
            else { return nil }
            result[keyPath: member] = pixels
        }
        outpainting = result
    }
}

/// `--config`.
struct ConfigurationOptions: ParsableArguments {
    @Option(
        help: "The configuration file. Default: config.yaml here, else /etc/diffused/config.yaml, else built-in values."
    )
    var config: String?

    /// The configuration with the environment applied.
    func load() throws -> Configuration {
        try Configuration.load(file: config ?? Configuration.defaultFile())
    }
}

/// `--config`, `--model` and `--precision`.
struct ModelOptions: ParsableArguments {
    @OptionGroup var configuration: ConfigurationOptions

    @Option(
        help: """
            The checkpoint, a diffusers folder or a single .safetensors or .ckpt file, or the name of a configured model. Wins over the \
            configuration.
            """
    )
    var model: String?

    @Option(help: "An autoencoder to use instead of the model's own, a folder or a file. Wins over the configuration.")
    var vae: String?

    @Option(help: "Storage of weights and activations. Wins over the configuration.")
    var precision: Precision?

    /// The configuration with these arguments applied.
    func load() throws -> Configuration {
        var result = try configuration.load()
        if let model, let configured = result.allModels.first(where: { $0.name == model }) {
            result.model = configured
        } else if let model {
            result.model.path = model
            // What the configuration says of its own model is not about this one.
            result.model.vae = nil
            result.model.prediction = .auto
        }
        if let vae { result.model.vae = vae }
        if let precision { (result.precision, result.model.precision) = (precision, nil) }
        return result
    }
}

/// The program's logger.
func makeLogger(_ configuration: Configuration) -> Logger {
    let level = configuration.log.level
    let style = StandardErrorLogHandler.style()
    // Libraries make loggers of their own; they shall write the same way.
    LoggingSystem.bootstrap { _ in StandardErrorLogHandler(level: level, style: style) }
    return Logger(label: "diffused")
}

extension Configuration {
    /// A picture side from the command line.
    ///
    /// - Throws: `UsageError` unless it is a multiple of 8 within the limit.
    func checkedSide(_ value: Int, option: String, limit: Int) throws -> Int {
        guard value >= 8, value <= limit, value.isMultiple(of: 8) else {
            throw UsageError(description: "\(option): found \(value), allowed is a multiple of 8 from 8 to \(limit)")
        }
        return value
    }

    /// A number of steps from the command line.
    ///
    /// - Throws: `UsageError` unless it is within the limit.
    func checkedSteps(_ value: Int, option: String = "--steps") throws -> Int {
        guard value >= 1, value <= limits.steps else {
            throw UsageError(description: "\(option): found \(value), allowed is 1 to \(limits.steps)")
        }
        return value
    }
}
