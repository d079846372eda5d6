// Which parts a model has, and the configurations of those used here, checked against each other. Everything a folder can
// get wrong in its JSON, or a single file in its shapes, is found here, before any weight is read.

internal import JSON

/// What `model_index.json` says: the pipeline class and the class of each part.
struct ModelIndex: Sendable, Equatable {
    /// The pipeline's class, such as `StableDiffusionPipeline`.
    let pipelineClass: String
    /// Class names by the name of the part, without the parts that are absent.
    let components: [String: String]
    /// Whether the model is of Stable Diffusion XL.
    var isXL: Bool { Self.pipelinesOfXL.contains(pipelineClass) }
    /// Whether a missing negative prompt means zeros instead of the encoding of an empty text (Stable Diffusion XL).
    let forceZerosForEmptyPrompt: Bool

    /// Pipelines whose parts are those of text to image.
    private static let pipelines = [
        "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionPipelineSafe", "StableDiffusionControlNetPipeline", "StableDiffusionInpaintPipeline",
    ]

    /// The same of Stable Diffusion XL.
    private static let pipelinesOfXL = [
        "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
    ]

    /// The classes of the parts used here.
    private static let classes = [
        ("text_encoder", ["CLIPTextModel"]),
        ("tokenizer", ["CLIPTokenizer", "CLIPTokenizerFast"]),
        ("unet", ["UNet2DConditionModel"]),
        ("vae", ["AutoencoderKL"]),
    ]

    /// What Stable Diffusion XL has besides.
    private static let classesOfXL = [
        ("text_encoder_2", ["CLIPTextModelWithProjection"]),
        ("tokenizer_2", ["CLIPTokenizer", "CLIPTokenizerFast"]),
    ]

    /// Reads the index of a folder and checks that the parts used here are named and of a class known here.
    init(file: ConfigurationFile) throws(ConfigurationFileError) {
        guard let pipelineClass = file.value("_class_name")?.stringValue,
            Self.pipelines.contains(pipelineClass) || Self.pipelinesOfXL.contains(pipelineClass)
        else {
            throw file.refusal(
                "_class_name",
                allowed: "\"StableDiffusionPipeline\" (Stable Diffusion 1.x and 2.x) or \"StableDiffusionXLPipeline\""
            )
        }
        self.pipelineClass = pipelineClass
        let isXL = Self.pipelinesOfXL.contains(pipelineClass)
        let forcesZeros = try file.bool("force_zeros_for_empty_prompt", default: true)
        forceZerosForEmptyPrompt = isXL && forcesZeros
        var components: [String: String] = [:]
        for (name, allowed) in Self.classes + (isXL ? Self.classesOfXL : []) {
            let part = file.value(name)?.arrayValue
            guard let part, part.count == 2, let className = part[1].stringValue, allowed.contains(className) else {
                throw file.refusal(name, allowed: "a part of class \(allowed.joined(separator: " or "))")
            }
            components[name] = className
        }
        self.components = components
    }
}

/// The configurations of all parts of a model.
struct ModelConfiguration: Sendable, Equatable {
    /// The folder or the file.
    let path: String
    /// Text encoders: one, or the two of Stable Diffusion XL, whose hidden states stand side by side.
    let textEncoders: [CLIPTextModelConfiguration]
    /// Which of their hidden states condition the UNet.
    let hiddenState: CLIPTextModel.HiddenState
    /// Whether a missing negative prompt means zeros instead of the encoding of an empty text.
    let forceZerosForEmptyPrompt: Bool
    /// Denoising network.
    let unet: UNet2DConditionModelConfiguration
    /// Autoencoder.
    let vae: AutoencoderKLConfiguration
    /// Noise schedule.
    let scheduler: SchedulerConfiguration

    /// Whether the UNet is given a mask and the latents of what it leaves besides its own.
    var isInpainting: Bool { unet.inChannels == 2 * vae.latentChannels + 1 }

    /// Whether the autoencoder's activations have to be float32 where those of the UNet are half.
    var needsFloat32VAE: Bool { unet.textTime != nil && vae.forceUpcast }

    /// What the width and height of a picture are multiples of: whole latents, and 8 as everywhere.
    var sizeMultiple: Int { max(vae.scaleFactor, 8) }

    /// Width and height in pixels of the pictures the model was trained for, rounded up to a size that can be asked for.
    var nativeSize: Int { (unet.sampleSize * vae.scaleFactor + sizeMultiple - 1) / sizeMultiple * sizeMultiple }

    /// Reads the configurations of a folder.
    init(folder: String) throws {
        try self.init(ModelSource(path: folder))
    }

    /// Reads the configurations of a model.
    init(_ source: ModelSource) throws(ConfigurationFileError) {
        path = source.path
        let index = try ModelIndex(file: source.configuration("model_index"))
        forceZerosForEmptyPrompt = index.forceZerosForEmptyPrompt
        hiddenState = index.isXL ? .penultimate : .last
        var textEncoders = [try CLIPTextModelConfiguration(file: source.configuration("text_encoder"))]
        if index.isXL {
            let file = try source.configuration("text_encoder_2")
            textEncoders.append(try CLIPTextModelConfiguration(file: file, hasProjection: true))
            // Their hidden states stand side by side, token by token.
            guard textEncoders[0].maxPositionEmbeddings == textEncoders[1].maxPositionEmbeddings else {
                throw file.refusal(
                    "max_position_embeddings",
                    allowed: "that of text_encoder, \(textEncoders[0].maxPositionEmbeddings)"
                )
            }
        }
        self.textEncoders = textEncoders
        let unetFile = try source.configuration("unet")
        unet = try UNet2DConditionModelConfiguration(file: unetFile)
        vae = try AutoencoderKLConfiguration(file: source.configuration("vae"))
        scheduler = try SchedulerConfiguration(file: source.configuration("scheduler"))

        // The parts have to fit each other.
        let hiddenSize = textEncoders.reduce(0) { $0 + $1.hiddenSize }
        guard unet.crossAttentionDim == hiddenSize else {
            throw unetFile.refusal("cross_attention_dim", allowed: "the text encoders' hidden_size, \(hiddenSize)")
        }
        let pooledDim = textEncoders.last?.projectionDim
        guard unet.textTime?.pooledDim == pooledDim else {
            guard let textTime = unet.textTime, let pooledDim else {
                throw unetFile.refusal(
                    "addition_embed_type",
                    allowed: index.isXL ? "\"text_time\"" : "null in models that are not Stable Diffusion XL"
                )
            }
            throw unetFile.refusal(
                "projection_class_embeddings_input_dim",
                allowed: "\(pooledDim) of the pooled prompt and \(textTime.inputDim - textTime.pooledDim) of the sizes"
            )
        }
        guard unet.inChannels == vae.latentChannels || isInpainting else {
            throw unetFile.refusal(
                "in_channels",
                allowed:
                    "the autoencoder's latent_channels, \(vae.latentChannels), or \(2 * vae.latentChannels + 1) of a model "
                    + "for inpainting (others, which edit by instructions and the like, are not supported)"
            )
        }
        guard unet.outChannels == vae.latentChannels else {
            throw unetFile.refusal("out_channels", allowed: "the autoencoder's latent_channels, \(vae.latentChannels)")
        }
    }
}
