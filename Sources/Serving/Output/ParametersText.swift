// The text that goes into a picture's `parameters` chunk, in the layout AUTOMATIC1111's web UI made common, so that
// other programs can read back how a picture was made.

internal import Foundation
internal import JSON
public import StableDiffusion

/// How a picture was made, as text.
public enum ParametersText {
    /// Keyword of the PNG text chunk.
    public static let keyword = "parameters"

    /// The prompt, the negative prompt when there is one, and one line of settings.
    ///
    /// - Parameters:
    ///   - request: what was asked for.
    ///   - model: what drew it.
    public static func text(for request: GenerationRequest, model: ModelDescription) -> String {
        // That program names LoRAs within the prompt.
        let tags = request.loras.map { " <lora:\($0.name):\(shortNumber($0.weight))>" }
        var lines = [request.prompt + tags.joined()]
        if !request.negativePrompt.isEmpty {
            lines.append("Negative prompt: \(request.negativePrompt)")
        }
        var settings = [
            ("Steps", String(request.steps)),
            ("Sampler", request.sampler.webUIName),
        ]
        if let schedule = request.schedule { settings.append(("Schedule type", schedule.webUIName)) }
        settings += [
            ("CFG scale", shortNumber(request.guidanceScale)),
            ("Seed", request.seed.description),
            ("Size", "\(request.width)x\(request.height)"),
            ("Model", stem(model.name)),
        ]
        if let source = request.source { settings.append(("Denoising strength", shortNumber(source.strength))) }
        if let hires = request.hires {
            // That program's steps of a second pass are those it does.
            let steps = GenerationRequest.steps(of: hires.steps ?? request.steps, strength: hires.strength)
            settings += [
                ("Denoising strength", shortNumber(hires.strength)), ("Hires upscale", shortNumber(hires.scale)),
                ("Hires steps", String(steps)), ("Hires upscaler", "Lanczos"),
            ]
        }
        if request.clipSkip > 1 { settings.append(("Clip skip", String(request.clipSkip))) }
        settings.append(("RNG", rngName(request.noise)))
        // The web UI has a setting for each of the two.
        if let eta = request.eta { settings.append((request.sampler == .ddim ? "Eta DDIM" : "Eta", shortNumber(eta))) }
        if let spacing = request.spacing { settings.append(("Timestep spacing", spacing.rawValue)) }
        settings.append(("Version", "diffused \(softwareVersion)"))
        lines.append(settings.map { "\($0): \(quoted($1))" }.joined(separator: ", "))
        return lines.joined(separator: "\n")
    }

    /// What that program calls a source of random numbers; it knows the first two.
    private static func rngName(_ noise: NoiseSource) -> String {
        switch noise {
        case .torch: "CPU"
        case .cuda: "NV"
        case .tensorflow: "TensorFlow"
        case .numpy: "NumPy"
        }
    }

    /// The checkpoint's name without the ending of a single file.
    private static func stem(_ name: String) -> String {
        for ending in [".safetensors", ".ckpt"] where name.hasSuffix(ending) {
            return String(name.dropLast(ending.count))
        }
        return name
    }

    /// Values that hold a separator are written as JSON strings, or the line could not be taken apart again.
    private static func quoted(_ value: String) -> String {
        value.contains { $0 == "," || $0 == ":" || $0.isNewline } ? JSONValue.string(value).serialized : value
    }
}

/// A number without a fraction it does not have: 7 and 7.5.
func shortNumber(_ value: Double) -> String {
    value == value.rounded() && abs(value) < 1e15 ? String(Int64(value)) : String(value)
}
