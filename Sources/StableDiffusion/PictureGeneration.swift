// One picture on its way: from noise, from noise over a picture, or only where a mask says so (diffusers 0.42.1, pipelines/stable_diffusion/
// pipeline_stable_diffusion.py, pipeline_stable_diffusion_img2img.py, pipeline_stable_diffusion_inpaint.py and those of Stable Diffusion XL).

internal import TensorOps

/// One picture being made.
final class PictureGeneration: Generation {
    private let request: GenerationRequest
    private let pipeline: StableDiffusionPipeline
    private let contexts: [UNetContext]
    private let adapters: AdapterSet?
    private let bands: DecoderBands?
    private let truncatedPrompt: String?
    private let kept: KeptPicture?
    /// `[1, H, W, 1 + C]`, float32: the mask and the latents of what it leaves, for models made for inpainting.
    private let conditioning: Tensor?
    private var noise: NoiseGenerator
    private var run: SamplerRun<Tensor>
    let totalSteps: Int

    /// What stays of a picture while the rest is drawn anew, by an ordinary model.
    private struct KeptPicture {
        /// `[1, H, W, C]`, float32.
        let latents: Tensor
        /// The noise that everything began with, likewise.
        let noise: Tensor
        /// Likewise, 1 where the picture is drawn anew.
        let mask: Tensor
    }

    var completedSteps: Int { run.completedSteps }

    /// `[1, H, W, C]`, float32; the next step goes on from what is put in their place.
    var latents: Tensor {
        get { run.latents }
        set { run.latents = newValue }
    }

    /// Encodes the prompts and the picture, and draws the noise.
    ///
    /// - Parameters:
    ///   - program: Of the request.
    ///   - adapters: Of its LoRAs, in effect already.
    ///   - bands: How the latents are decoded; nil on the whole.
    init(
        _ request: GenerationRequest,
        _ program: SamplerProgram,
        _ pipeline: StableDiffusionPipeline,
        adapters: AdapterSet?,
        bands: DecoderBands?
    ) throws {
        self.request = request
        self.pipeline = pipeline
        self.adapters = adapters
        self.bands = bands
        totalSteps = program.steps.count
        let prompts = try pipeline.encode(request)
        truncatedPrompt = prompts.truncatedPrompt
        contexts = try pipeline.contexts(prompts, request)

        // Draws are in diffusers' order: the picture's latents, the noise, the latents of what the mask leaves.
        var noise = NoiseGenerator(request.noise, seed: request.seed)
        let source = request.source
        let isInpainting = pipeline.configuration.isInpainting
        let beginsWithNoise = source.map { $0.mask != nil && $0.strength == 1 } ?? true
        var picture: Tensor?
        if let source, !beginsWithNoise || !isInpainting {
            picture = try pipeline.latents(of: source.signedPixels, &noise, for: request)
        }
        let first: Tensor
        if let source, let picture {
            let epsilon = try pipeline.noise(&noise, for: request)
            if beginsWithNoise {
                first = try Tensor.weightedSum([(Float(program.initNoiseSigma), epsilon)])
            } else {
                let level = program.evaluations[0].level
                first = try Tensor.weightedSum([(Float(level.signal), picture), (Float(level.noise), epsilon)])
            }
            if isInpainting || source.mask == nil {
                kept = nil
            } else {
                let mask = try pipeline.latentMask(source, request)
                kept = KeptPicture(latents: picture, noise: epsilon, mask: mask)
            }
        } else {
            first = try pipeline.noise(&noise, for: request, deviation: program.initNoiseSigma)
            kept = nil
        }
        if isInpainting {
            conditioning = try pipeline.conditioning(source, &noise, for: request)
        } else {
            conditioning = nil
            // Drawn by diffusers, though an ordinary model has no use for it.
            if source?.mask != nil, !pipeline.device.isDryRun {
                let shape = pipeline.latentShape(request)
                _ = noise.latents(channels: shape[3], height: shape[1], width: shape[2])
            }
        }
        run = SamplerRun(program, first: first)
        self.noise = noise
    }

    func step() throws {
        precondition(completedSteps < totalSteps, "step beyond the last")
        try translatingDeviceErrors(releasing: pipeline.device) {
            try run.step(
                evaluate: { latents, evaluation, _ in
                    try pipeline.adapters.with(adapters) {
                        try pipeline.predict(latents, evaluation, contexts, conditioning: conditioning, for: request)
                    }
                },
                combine: { terms in try Tensor.weightedSum(terms.map { (Float($0.coefficient), $0.value) }) },
                noise: { try pipeline.noise(&noise, for: request) },
                settle: { latents, next in
                    guard let kept else { return latents }
                    let level = next ?? NoiseLevel(signal: 1, noise: 0)
                    return try latents.masked(
                        by: kept.mask,
                        elsewhere: [(Float(level.signal), kept.latents), (Float(level.noise), kept.noise)]
                    )
                }
            )
            try pipeline.device.finish()
        }
    }

    func decode() throws -> GeneratedImage {
        precondition(completedSteps == totalSteps, "decode before the last step")
        return try translatingDeviceErrors(releasing: pipeline.device) {
            let picture = try decodedLatents()
            // As bytes it would be a black picture like any other.
            guard try picture.floats().allSatisfy(\.isFinite) else {
                throw GenerationError.nonFinite(
                    reason: "the model's numbers overflow, in precision \(pipeline.model.precision.rawValue); "
                        + "precision: float32 has the widest range, and weights that overflow there are damaged"
                )
            }
            let pixels = try picture.rgb8()
            return GeneratedImage(
                width: request.width,
                height: request.height,
                pixels: pixels,
                truncatedPrompt: truncatedPrompt
            )
        }
    }

    /// The picture, `[1, height, width, 3]`, about -1 to 1.
    func decodedLatents() throws -> Tensor {
        try pipeline.vae.decode(latents, bands: bands)
    }
}

extension StableDiffusionPipeline {
    /// 1 where a picture is drawn anew and 0 where it stays, for every element of its latents: `[1, H, W, C]`, float32.
    fileprivate func latentMask(_ source: SourcePicture, _ request: GenerationRequest) throws -> Tensor {
        let shape = latentShape(request)
        let mask = source.maskOfLatents(scale: configuration.vae.scaleFactor, width: request.width, shape)
        return try device.tensor(
            mask.flatMap { [Float](repeating: $0, count: shape[3]) },
            shape: shape,
            type: .float32
        )
    }

    /// What a model for inpainting is given besides the latents: the mask and the latents of the picture without what it covers; without a
    /// picture, a mask of everything.
    fileprivate func conditioning(
        _ source: SourcePicture?,
        _ generator: inout NoiseGenerator,
        for request: GenerationRequest
    ) throws -> Tensor {
        let shape = latentShape(request)
        let masked = try latents(
            of: source?.mask == nil
                ? [Float](repeating: 0, count: request.width * request.height * 3) : source?.keptPixels ?? [],
            &generator,
            for: request
        )
        let mask =
            source?.maskOfLatents(scale: configuration.vae.scaleFactor, width: request.width, shape)
            ?? [Float](repeating: 1, count: shape[1] * shape[2])
        return try device.tensor(mask, shape: shape.dropLast() + [1], type: .float32).concatenated(with: masked)
    }
}

extension SourcePicture {
    /// The pixels as the autoencoder takes them, rounded as diffusers rounds.
    fileprivate var signedPixels: [Float] { pixels.map { Float($0) / 255 * 2 - 1 } }

    /// The same with grey where the picture is drawn anew.
    fileprivate var keptPixels: [Float] {
        var kept = signedPixels
        for (index, value) in (mask ?? []).enumerated() where value >= 128 {
            for channel in 0..<3 { kept[3 * index + channel] = 0 }
        }
        return kept
    }

    /// The mask at the resolution of the latents, 0 or 1: that of the upper left pixel of each, as PyTorch's nearest neighbour.
    fileprivate func maskOfLatents(scale: Int, width: Int, _ shape: [Int]) -> [Float] {
        guard let mask else { return [Float](repeating: 1, count: shape[1] * shape[2]) }
        return (0..<shape[1]).flatMap { y in
            (0..<shape[2]).map { x in mask[y * scale * width + x * scale] >= 128 ? 1 : 0 }
        }
    }
}

extension GenerationRequest {
    /// Throws `GenerationError.invalid` for a picture to begin with, or a mask, of another size.
    func checkSource() throws(GenerationError) {
        guard let source else { return }
        guard source.pixels.count == width * height * 3 else {
            throw .invalid(
                field: "image",
                reason: "the picture has not \(width)x\(height) pixels, as what is made of it"
            )
        }
        guard source.mask.map({ $0.count == width * height }) ?? true else {
            throw .invalid(field: "mask", reason: "the mask has not \(width)x\(height) pixels, as the picture has")
        }
    }

    /// How many of a number of steps are done to a picture that is begun with.
    public static func steps(of steps: Int, strength: Double) -> Int { min(Int(Double(steps) * strength), steps) }

    /// The first of the sampler's steps: later than the first of all where a picture is begun with.
    ///
    /// - Throws: `GenerationError.invalid` for a strength that leaves nothing to do.
    func firstStep() throws(GenerationError) -> Int {
        guard let source else { return 0 }
        guard source.strength > 0, source.strength <= 1 else {
            throw .invalid(field: "strength", reason: "\(source.strength) is not above 0 and at most 1")
        }
        let remaining = Self.steps(of: steps, strength: source.strength)
        guard remaining >= 1 else {
            throw .invalid(
                field: "strength",
                reason: "\(source.strength) of \(steps) steps is less than one; take more steps or more strength"
            )
        }
        return steps - remaining
    }
}
