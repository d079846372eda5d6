// `diffused generate`: one picture without HTTP.

internal import ArgumentParser
internal import Foundation
internal import Serving
internal import StableDiffusion

/// Draws one picture into a file.
struct GenerateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "generate",
        abstract: "Draws a picture, or several, into PNG files and prints their paths."
    )

    @OptionGroup var model: ModelOptions

    @Option(help: "What the picture should show.")
    var prompt: String

    @Option(help: "What the picture should not show.")
    var negativePrompt = ""

    @Option(parsing: .unconditional, help: "Seed of the initial noise, any 64-bit integer. Default: a random one.")
    var seed: SeedArgument?

    @Option(help: "Denoising steps.")
    var steps: Int?

    @Option(parsing: .unconditional, help: "Guidance scale; 1 or less is no guidance.")
    var scale: Double?

    @Option(
        help: """
            Sampling algorithm: \(Sampler.allCases.map(\.rawValue).joined(separator: ", ")), or another program's name, such \
            as "DPM++ 2M Karras".
            """
    )
    var sampler: SamplerName?

    @Option(help: "Which noise levels the steps visit; auto is what the checkpoint says.")
    var schedule: ScheduleArgument?

    @Option(help: "How timesteps are spaced. Default: as the checkpoint says.")
    var spacing: TimestepSpacing?

    @Option(
        parsing: .unconditional,
        help: "Share of the noise taken away at a step that fresh noise replaces, 0 to 1, for samplers that add noise."
    )
    var eta: Double?

    @Option(
        help: "PNG or JPEG file that the picture is made from; its size is the default of the picture's.",
        completion: .file()
    )
    var image: String?

    @Option(help: "PNG or JPEG file of the image's size: white is drawn anew, black stays.", completion: .file())
    var mask: String?

    @Option(parsing: .unconditional, help: "How far from the image the drawing begins, above 0 to 1, which is noise.")
    var strength: Double?

    @Option(
        help: ArgumentHelp(
            """
            Continues the image beyond its sides, as left:64,top:32 says in its pixels; with overlap:16 so many pixels of \
            the new picture are drawn anew there, so that no seam shows. The strength is then 1 by default.
            """,
            valueName: "side:pixels,..."
        )
    )
    var outpaint: OutpaintArgument?

    @Option(
        parsing: .unconditional,
        help: "Draws a second pass over the picture, enlarged so many times, above 1 to \(Int(HiresPass.maximumScale))."
    )
    var hires: Double?

    @Option(parsing: .unconditional, help: "How far from the enlarged picture the second pass begins, above 0 to 1.")
    var hiresStrength: Double?

    @Option(
        help: "Steps of the second pass, of which its strength says how many are done. Default: those of the first."
    )
    var hiresSteps: Int?

    @Option(help: "How the prompts are read; a1111 knows (weights:1.2), [less] and BREAK.")
    var promptSyntax: PromptSyntax?

    @Option(help: "Layer of the text encoder, counted from the end, that conditions the picture.")
    var clipSkip: Int?

    @Option(help: "Whose random numbers the seed means.")
    var rng: NoiseSource?

    @Option(
        help: ArgumentHelp(
            "A LoRA of the directory model.loras and its weight, 1 if left out, -100 to 100. May be given several times.",
            valueName: "name:weight"
        )
    )
    var lora: [LoRAArgument] = []

    @Option(help: "Width in pixels, a multiple of 8.")
    var width: Int?

    @Option(help: "Height in pixels, a multiple of 8.")
    var height: Int?

    @Option(help: "Number of pictures, each with the seed after the last one's.")
    var count = 1

    @Option(
        help: """
            The file to write; several pictures are numbered before its ending. Default: named after the prompt and the seed, without overwriting \
            anything.
            """
    )
    var output: String?

    func run() throws {
        let configuration = try model.load()
        // What is wrong with the arguments is said before a model is loaded.
        let limits = configuration.limits
        let width = try width.map { try configuration.checkedSide($0, option: "--width", limit: limits.width) }
        let height = try height.map { try configuration.checkedSide($0, option: "--height", limit: limits.height) }
        let steps = try configuration.checkedSteps(steps ?? configuration.sampling.steps)
        guard 1...limits.count ~= count else {
            throw UsageError(description: "--count: found \(count), allowed is 1 to \(limits.count)")
        }
        let scale = scale ?? configuration.sampling.scale
        let maximumScale = GenerationRequest.maximumGuidanceScale
        guard scale.isFinite, scale <= maximumScale else {
            throw UsageError(
                description: "--scale: found \(scale), allowed is a number of at most \(Int(maximumScale))"
            )
        }

        let sampling = configuration.sampling
        let sampler = sampler?.sampler ?? sampling.sampler
        let schedule = schedule.map(\.schedule) ?? self.sampler?.schedule ?? sampling.schedule(for: sampler)

        let spacing = spacing ?? sampling.spacing(for: sampler)
        do {
            try sampler.check(schedule: schedule, spacing: spacing, eta: eta)
        } catch {
            throw UsageError(description: "--\(error)")
        }

        let clipSkip = clipSkip ?? sampling.clipSkip
        guard 1...GenerationRequest.maximumClipSkip ~= clipSkip else {
            throw UsageError(
                description: "--clip-skip: found \(clipSkip), allowed is 1 to \(GenerationRequest.maximumClipSkip)"
            )
        }

        for (option, isGiven) in [
            ("--mask", mask != nil), ("--strength", strength != nil), ("--outpaint", outpaint != nil),
        ]
        where isGiven && image == nil {
            throw UsageError(description: "\(option): without --image it says nothing")
        }
        if let strength, !(strength > 0 && strength <= 1) {
            throw UsageError(description: "--strength: found \(strength), allowed is above 0 to 1")
        }
        let secondPass = try secondPass(configuration)
        let picture = try image.map { try Self.decoded($0, option: "--image") }
        let options = configuration.pipelineOptions
        let outline = try options.outline()
        let native = outline.nativeSize
        let own = picture.map {
            SourcePicture.size(
                of: $0,
                outpaint?.outpainting,
                multiple: outline.sizeMultiple,
                limits: (limits.width, limits.height)
            )
        }
        var request = GenerationRequest(
            prompt: prompt,
            negativePrompt: negativePrompt,
            width: width ?? own?.width ?? configuration.image.width ?? native,
            height: height ?? own?.height ?? configuration.image.height ?? native,
            steps: steps,
            guidanceScale: scale,
            seed: seed?.seed ?? .random(),
            noise: rng ?? sampling.noise,
            sampler: sampler,
            schedule: schedule,
            spacing: spacing,
            eta: eta,
            promptSyntax: promptSyntax ?? sampling.promptSyntax,
            clipSkip: clipSkip,
            loras: lora.map(\.reference),
            hires: secondPass
        )
        if secondPass != nil, let excess = limits.excess(ofSecondPass: request, multiple: outline.sizeMultiple) {
            throw UsageError(description: "--hires: \(excess)")
        }
        if let picture {
            do {
                request.source = try SourcePicture(
                    picture,
                    mask: mask.map { try Self.contents($0, option: "--mask") },
                    outpainting: outpaint?.outpainting,
                    strength: strength,
                    width: request.width,
                    height: request.height,
                    multiple: outline.sizeMultiple
                )
            } catch let error as SourcePicture.DecodingError {
                throw UsageError(description: "--\(error.field): \(error.reason)")
            }
        }

        let logger = makeLogger(configuration)
        let generator = try StableDiffusionPipeline(options, logger: logger)
        for index in 0..<count {
            var picture = request
            picture.seed = request.seed.advanced(by: index)
            try draw(picture, with: generator, to: output.map { count > 1 ? Self.numbered($0, index + 1) : $0 })
        }
    }

    /// Draws a picture and prints where it is.
    private func draw(_ request: GenerationRequest, with generator: StableDiffusionPipeline, to output: String?) throws
    {
        let generation = try generator.prepare(request)
        var progress = ProgressBar(steps: generation.totalSteps)
        while generation.completedSteps < generation.totalSteps {
            try generation.step()
            progress.show(generation.completedSteps)
        }
        let image = try generation.decode()
        progress.finish()

        let png = try PNGEncoder.encode(
            pixels: image.pixels,
            width: image.width,
            height: image.height,
            text: (ParametersText.keyword, ParametersText.text(for: request, model: generator.model))
        )
        let path = output ?? Self.freePath(for: request)
        try writeOutput(png, to: path)
        if let cut = image.truncatedPrompt {
            Diffused.write("note: the prompt is longer than the model reads; this was cut: \(cut)\n")
        }
        print(path)
    }

    /// The path of one of several pictures: `a.png` is `a-1.png`, and so on.
    static func numbered(_ path: String, _ number: Int) -> String {
        let name = path.split(separator: "/", omittingEmptySubsequences: false).last ?? ""
        guard let dot = name.lastIndex(of: "."), dot != name.startIndex else { return "\(path)-\(number)" }
        return "\(path[..<dot])-\(number)\(path[dot...])"
    }

    /// The second pass that the arguments ask for.
    private func secondPass(_ configuration: Configuration) throws -> HiresPass? {
        for (option, isGiven) in [("--hires-strength", hiresStrength != nil), ("--hires-steps", hiresSteps != nil)]
        where isGiven && hires == nil {
            throw UsageError(description: "\(option): without --hires it says nothing")
        }
        guard let hires else { return nil }
        guard image == nil else {
            throw UsageError(description: "--hires: what is made from an image is enlarged by --width and --height")
        }
        guard hires > 1, hires <= HiresPass.maximumScale else {
            throw UsageError(
                description: "--hires: found \(hires), allowed is above 1 to \(Int(HiresPass.maximumScale))"
            )
        }
        let strength = hiresStrength ?? HiresPass.usualStrength
        guard strength > 0, strength <= 1 else {
            throw UsageError(description: "--hires-strength: found \(strength), allowed is above 0 to 1")
        }
        let steps = try hiresSteps.map { try configuration.checkedSteps($0, option: "--hires-steps") }
        return HiresPass(scale: hires, strength: strength, steps: steps)
    }

    /// A picture from a file.
    private static func decoded(_ path: String, option: String) throws -> DecodedPicture {
        let bytes = try contents(path, option: option)
        do {
            return try DecodedPicture.rgb(bytes)
        } catch {
            throw UsageError(description: "\(option): \(path): \(error)")
        }
    }

    private static func contents(_ path: String, option: String) throws -> [UInt8] {
        do {
            return Array(try Data(contentsOf: URL(fileURLWithPath: path)))
        } catch {
            throw UsageError(description: "\(option): \(path) cannot be read: \(error.localizedDescription)")
        }
    }

    /// A file name that says what the picture is, and that does not exist yet.
    static func freePath(for request: GenerationRequest) -> String {
        let words = request.prompt.lowercased().split { !($0.isASCII && ($0.isLetter || $0.isNumber)) }
        let name = words.joined(separator: "-").prefix(48)
        let stem = "\(name.isEmpty ? "picture" : String(name))-\(request.seed)"
        var path = "\(stem).png"
        var count = 1
        while FileManager.default.fileExists(atPath: path) {
            count += 1
            path = "\(stem)-\(count).png"
        }
        return path
    }
}
