// `diffused inspect`: what a file is.

internal import ArgumentParser
internal import StableDiffusion

/// Says what a file or a folder is.
struct InspectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect",
        abstract: "Says what a model, VAE, LoRA or embedding is: family, precision, what it predicts, what is missing.",
        discussion:
            "Reads names and shapes only, opens no device and executes nothing. The exit code is 1 for what cannot be used."
    )

    @Argument(help: "A .safetensors, .ckpt, .pt or .bin file, or a folder in diffusers' layout.")
    var path: String

    @Flag(help: "Print one JSON object.")
    var json = false

    func run() throws {
        let inspection = try ModelInspection(path: path)
        print(try json ? inspection.json() : inspection.text)
        if !inspection.problems.isEmpty { throw ExitCode(1) }
    }
}
