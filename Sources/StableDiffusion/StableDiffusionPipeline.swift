// The pipeline: tokenise -> encode -> denoise step by step -> decode (diffusers' StableDiffusionPipeline). A generation is a value
// that is stepped from outside, so that progress, cancellation and sharing the device are the caller's business.

public import Logging
internal import TensorOps

/// A checkpoint on a device, ready to draw.
public final class StableDiffusionPipeline: ImageGenerator {
    /// What is loaded.
    public let model: ModelDescription
    let device: TensorDevice
    let promptEncoder: PromptEncoder
    let unet: UNet2DConditionModel
    let vae: AutoencoderKL
    let configuration: ModelConfiguration
    /// Picture size that the pool's buffers are for.
    private var pooledSize: [Int] = []
    /// Ways to make the picture asked for last, and what each takes.
    var plans: [PicturePlan] = []

    /// Loads a model: files, configurations, names and shapes are checked before the device is opened, the numbers of every tensor before it
    /// is uploaded.
    ///
    /// - Throws: `ConfigurationFileError`, `WeightsError`, `TokenizerError` for the checkpoint; errors of the device with what to do about
    ///   them.
    public init(_ options: PipelineOptions, logger: Logger) throws {
        let clock = ContinuousClock()
        let start = clock.now
        let path = options.modelPath
        let source = try ModelSource(path: path, vae: options.vaePath, prediction: options.prediction)
        configuration = try ModelConfiguration(source)
        let suffixes = ["", "_2"].prefix(configuration.textEncoders.count)
        let tokenizers = try zip(suffixes, configuration.textEncoders).map {
            try source.tokenizer("tokenizer" + $0, textEncoder: $1)
        }
        let textEncoderFiles = try suffixes.map { try source.checkpoint("text_encoder" + $0) }
        let unetFiles = try source.checkpoint("unet")
        let vaeFiles = try source.checkpoint("vae")
        let parts =
            zip(textEncoderFiles, configuration.textEncoders.map(\.tensors))
            + [(unetFiles, configuration.unet.tensors), (vaeFiles, configuration.vae.decoderTensors)]
        for (files, tensors) in parts {
            for tensor in tensors { try files.check(tensor.name, shape: tensor.shape) }
        }

        device = try TensorDevice(options, logger: logger)
        promptEncoder = try PromptEncoder(
            configuration,
            tokenizers: tokenizers,
            checkpoints: textEncoderFiles,
            on: device
        )
        unet = try UNet2DConditionModel(WeightLoader(unetFiles), configuration.unet, on: device)
        // Stable Diffusion XL's overflows in half precision, where activations are that.
        let vaeDevice = configuration.needsFloat32VAE ? device.withFloat32Activations() : device
        vae = try AutoencoderKL(WeightLoader(vaeFiles), configuration.vae, on: vaeDevice)
        // Staging memory of the upload is of no further use.
        try device.finish()
        device.releaseUnusedMemory()

        model = ModelDescription(
            name: source.name,
            nativeSize: configuration.nativeSize,
            sizeMultiple: configuration.sizeMultiple,
            precision: options.precision,
            deviceName: device.name
        )
        logger.info(
            "model loaded",
            metadata: [
                "model": "\(model.name)", "precision": "\(model.precision.rawValue)", "device": "\(model.deviceName)",
                "seconds": "\((clock.now - start) / .seconds(1))",
            ]
        )
    }

    /// Checks a request against the model and the device, tokenises and encodes its prompts and draws the noise.
    ///
    /// - Throws: `GenerationError`.
    public func prepare(_ request: GenerationRequest) throws -> any Generation {
        // Buffers of another size would only add up: what a daemon holds is to be bounded by its largest picture, not by
        // how many sizes it has drawn.
        let size = [request.width, request.height]
        if size != pooledSize { device.releaseUnusedMemory() }
        pooledSize = size
        return try translatingDeviceErrors(releasing: device) {
            try TextToImageGeneration(request, self)
        }
    }

    /// A request's prompts, encoded.
    func encode(_ request: GenerationRequest) throws -> PromptEncoder.Output {
        try promptEncoder(request, usesGuidance: usesGuidance(request))
    }

    /// What the UNet is told of a request's prompts: of all, or of each where they differ in length.
    func contexts(_ prompts: PromptEncoder.Output, _ request: GenerationRequest) throws -> [UNetContext] {
        try prompts.batches.map { try unet.context(of: $0, height: request.height, width: request.width) }
    }

    /// The next noise of a picture, times a deviation: `[1, H, W, C]`, float32.
    func noise(_ generator: inout NoiseGenerator, for request: GenerationRequest, deviation: Double = 1) throws
        -> Tensor
    {
        let scale = configuration.vae.scaleFactor
        let (height, width, channels) = (
            request.height / scale, request.width / scale, configuration.vae.latentChannels
        )
        let values = generator.latents(channels: channels, height: height, width: width)
        return try device.tensor(
            deviation == 1 ? values : values.map { $0 * Float(deviation) },
            shape: [1, height, width, channels],
            type: .float32
        )
    }

    /// Whether the model runs twice a step, as diffusers decides it: not for a scale of 1 or less, nor with a model that is told the scale.
    func usesGuidance(_ request: GenerationRequest) -> Bool {
        request.guidanceScale > 1 && configuration.unet.timeCondProjDim == nil
    }

    /// What the model makes of latents, after guidance: `[1, H, W, C]`, float32.
    ///
    /// - Parameters:
    ///   - latents: `[1, H, W, C]`, float32.
    ///   - contexts: Of the prompt, or with guidance of the negative prompt and the prompt; see `contexts(_:_:)`.
    func predict(
        _ latents: Tensor,
        timestep: Double,
        inputScale: Double,
        _ contexts: [UNetContext],
        for request: GenerationRequest
    ) throws -> Tensor {
        let usesGuidance = usesGuidance(request)
        let copies = (usesGuidance ? 2 : 1) / contexts.count
        let input = try latents.modelInput(scale: Float(inputScale), copies: copies)
        let outputs = try contexts.map {
            try unet(input, timestep: timestep, $0, guidanceScale: request.guidanceScale)
        }
        let output = try outputs.dropFirst().reduce(outputs[0]) { try $0.appending($1) }
        return try usesGuidance
            ? output.guided(scale: Float(request.guidanceScale)) : output.converted(to: .float32)
    }

    /// The sampler's steps for a request, after everything that can be checked without the device has been.
    func program(_ request: GenerationRequest) throws -> SamplerProgram {
        let multiple = configuration.sizeMultiple
        for (field, value) in [("width", request.width), ("height", request.height)]
        where value < multiple || value % multiple != 0 {
            throw GenerationError.invalid(field: field, reason: "\(value) is not a positive multiple of \(multiple)")
        }
        for (field, value) in [("width", request.width), ("height", request.height)] where value > 1 << 20 {
            throw GenerationError.invalid(field: field, reason: "\(value) is more than \(1 << 20)")
        }
        guard request.guidanceScale <= GenerationRequest.maximumGuidanceScale else {
            throw GenerationError.invalid(
                field: "scale",
                reason: "\(request.guidanceScale) is more than \(GenerationRequest.maximumGuidanceScale)"
            )
        }
        return try SamplerSetup(
            request.sampler,
            configuration: configuration.scheduler,
            steps: request.steps,
            schedule: request.schedule,
            spacing: request.spacing,
            eta: request.eta
        ).program()
    }
}

extension TensorDevice {
    /// Opens the device of a pipeline's options, and chooses what multiplies its matrices.
    convenience init(_ options: PipelineOptions, logger: Logger) throws {
        try self.init(
            platform: options.device.platform,
            index: options.device.index,
            precision: ElementType(options.precision),
            kernelsDirectory: options.kernelsDirectory,
            cacheDirectory: options.cacheDirectory,
            logger: logger
        )
        switch options.device.gemm {
        case .auto: try chooseGEMM(cacheDirectory: options.cacheDirectory)
        case .clblast: useGEMM(.clblast)
        case .builtin: useGEMM(.builtin)
        }
    }
}

extension ElementType {
    /// The storage type of a precision.
    init(_ precision: Precision) {
        switch precision {
        case .float32: self = .float32
        case .float16: self = .float16
        case .bfloat16: self = .bfloat16
        }
    }
}

/// One picture being made.
final class TextToImageGeneration: Generation {
    private let request: GenerationRequest
    private let pipeline: StableDiffusionPipeline
    private let contexts: [UNetContext]
    private let plan: PicturePlan
    private let truncatedPrompt: String?
    private var noise: NoiseGenerator
    private var run: SamplerRun<Tensor>
    let totalSteps: Int

    var completedSteps: Int { run.completedSteps }

    /// `[1, H, W, C]`, float32; the next step goes on from what is put in their place.
    var latents: Tensor {
        get { run.latents }
        set { run.latents = newValue }
    }

    init(_ request: GenerationRequest, _ pipeline: StableDiffusionPipeline) throws {
        self.request = request
        self.pipeline = pipeline
        let program = try pipeline.program(request)
        totalSteps = program.steps.count
        // Said now rather than after all the steps.
        plan = try pipeline.plan(for: request)
        let prompts = try pipeline.encode(request)
        truncatedPrompt = prompts.truncatedPrompt
        contexts = try pipeline.contexts(prompts, request)
        var noise = NoiseGenerator(request.noise, seed: request.seed)
        run = SamplerRun(
            program,
            first: try pipeline.noise(&noise, for: request, deviation: program.initNoiseSigma)
        )
        self.noise = noise
    }

    func step() throws {
        precondition(completedSteps < totalSteps, "step beyond the last")
        try translatingDeviceErrors(releasing: pipeline.device) {
            try run.step(
                evaluate: { latents, evaluation, _ in
                    try pipeline.predict(
                        latents,
                        timestep: evaluation.timestep,
                        inputScale: evaluation.inputScale,
                        contexts,
                        for: request
                    )
                },
                combine: { terms in try Tensor.weightedSum(terms.map { (Float($0.coefficient), $0.value) }) },
                noise: { try pipeline.noise(&noise, for: request) }
            )
            try pipeline.device.finish()
        }
    }

    func decode() throws -> GeneratedImage {
        precondition(completedSteps == totalSteps, "decode before the last step")
        return try translatingDeviceErrors(releasing: pipeline.device) {
            let picture = try pipeline.vae.decode(latents, bands: plan.bands)
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
}

/// Runs `body` and turns failures of the device into errors for the person who asked.
///
/// After a failure unused memory goes back to the device, so that the next, smaller request finds it.
private func translatingDeviceErrors<Result>(releasing device: TensorDevice, _ body: () throws -> Result) throws
    -> Result
{
    do {
        return try body()
    } catch {
        switch DeviceFailure(error) {
        case .outOfMemory(let bytes, let reason):
            device.releaseUnusedMemory()
            throw GenerationError.outOfDeviceMemory(bytes: bytes, reason: reason)
        case .failed(let reason):
            device.releaseUnusedMemory()
            throw GenerationError.deviceFailed(reason: reason)
        case nil: throw error
        }
    }
}
