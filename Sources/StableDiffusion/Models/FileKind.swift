// What a file of tensors is, told from the names and shapes in it: a whole model in the original naming and its family, a part
// of one, a LoRA, an embedding, or something for other programs.

/// Families of models that share an architecture.
package enum ModelFamily: String, CaseIterable, Sendable {
    case stableDiffusion1 = "Stable Diffusion 1.x"
    case stableDiffusion2 = "Stable Diffusion 2.x"
    case stableDiffusionXL = "Stable Diffusion XL"

    /// The family whose UNet reads hidden states of a width.
    init?(contextWidth: Int) {
        switch contextWidth {
        case 768: self = .stableDiffusion1
        case 1024: self = .stableDiffusion2
        case 2048: self = .stableDiffusionXL
        default: return nil
        }
    }
}

/// Names and shapes of a file's tensors.
struct TensorShapes: Sendable {
    private let shapes: [String: [Int]]

    /// The tensors of a file.
    init(_ file: WeightFile) {
        shapes = file.entries.mapValues(\.shape)
    }

    /// Tensors by their shapes.
    init(_ shapes: [String: [Int]]) {
        self.shapes = shapes
    }

    /// All names, in no order.
    var names: some Collection<String> { shapes.keys }

    /// The shape of a tensor; nil when there is none of this name.
    subscript(_ name: String) -> [Int]? { shapes[name] }

    /// Whether there is a tensor of this name.
    func contains(_ name: String) -> Bool { shapes[name] != nil }

    /// Whether a name begins so.
    func contains(prefix: String) -> Bool { shapes.keys.contains { $0.hasPrefix(prefix) } }

    /// How many whole numbers from 0 on lead to a name that is there.
    func count(_ name: (Int) -> String) -> Int {
        var count = 0
        while shapes[name(count)] != nil { count += 1 }
        return count
    }
}

/// A low-rank adaptation of a model.
struct LoRADescription: Sendable, Equatable {
    /// Ways to name its tensors.
    enum Naming: String, Sendable {
        case kohya
        case diffusers = "diffusers/PEFT"
    }

    let naming: Naming
    /// The family it is for; nil when its tensors do not say.
    let family: ModelFamily?
    /// The ranks of its matrices, sorted.
    let ranks: [Int]
    /// What it changes, and how many layers of each.
    let targets: [String: Int]
    /// What it does beyond plain LoRA: `convolutions (LoCon)`, `DoRA`, `LoHa`, `LoKr`.
    let extensions: [String]
}

/// What a file of tensors is.
enum FileKind: Sendable, Equatable {
    /// A whole model in the original naming.
    case model(ModelFamily)
    /// An autoencoder, in the original naming behind a prefix, or in diffusers' (nil).
    case autoencoder(prefix: String?)
    /// A part in diffusers' or transformers' naming, which belongs into a folder.
    case part(String)
    /// A LoRA.
    case lora(LoRADescription)
    /// A textual inversion of so many vectors.
    case embedding(ModelFamily?, vectors: Int)
    /// Something this program does not draw with, in words.
    case other(String)
    /// Nothing that is known here.
    case unknown

    /// Names that tell models of other architectures.
    private static let others = [
        ("double_blocks.0.img_attn.norm.key_norm.scale", "a Flux model"),
        ("joint_blocks.0.context_block.adaLN_modulation.1.bias", "a Stable Diffusion 3 model"),
        ("transformer_blocks.0.attn.norm_added_k.weight", "a diffusion transformer"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight", "an AnimateDiff motion module"),
        ("clip_txt_mapper.weight", "a Stable Cascade model"),
        ("control_model.time_embed.0.weight", "a ControlNet"),
        ("input_hint_block.0.weight", "a ControlNet"), ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("edm_mean", "a Playground v2.5 model"),
        ("image_encoder.vision_model.embeddings.class_embedding", "an image encoder"),
    ]

    /// Looks at names and shapes.
    init(_ tensors: TensorShapes) {
        for (name, words) in Self.others where tensors.contains(name) || tensors.contains(LDMUNetNames.prefix + name) {
            self = .other(words)
            return
        }
        if tensors.contains(LDMUNetNames.prefix + "input_blocks.0.0.weight") {
            self = Self.model(tensors)
        } else if let lora = LoRADescription(tensors) {
            self = .lora(lora)
        } else if let embedding = Self.embedding(tensors) {
            self = embedding
        } else if tensors.contains("conv_in.weight"), tensors.contains(prefix: "down_blocks.") {
            self = .part("a UNet in diffusers' naming")
        } else if tensors.contains("encoder.layers.0.self_attn.q_proj.weight")
            || tensors.contains("text_model.encoder.layers.0.self_attn.q_proj.weight")
        {
            self = .part("a text encoder")
        } else if tensors.contains(prefix: "decoder.up_blocks.") {
            self = .autoencoder(prefix: nil)
        } else if let prefix = ["first_stage_model.", "vae.", ""]
            .first(where: { tensors.contains($0 + "decoder.up.0.block.0.conv1.weight") })
        {
            self = .autoencoder(prefix: prefix)
        } else {
            self = .unknown
        }
    }

    private static func model(_ tensors: TensorShapes) -> FileKind {
        let prefix = LDMUNetNames.prefix
        if tensors.contains(prefix + "label_emb.weight") { return .other("an upscaler") }
        switch tensors[prefix + "input_blocks.0.0.weight"]?.dropFirst().first {
        case 4, 9: break
        case 5: return .other("a depth-to-image model")
        case 8: return .other("an InstructPix2Pix model")
        default: return .other("a model whose UNet reads other latents")
        }
        let classes = tensors.contains(prefix + "label_emb.0.0.weight")
        if tensors.contains(prefix: "conditioner.embedders.1.model.") { return .model(.stableDiffusionXL) }
        if tensors.contains(prefix: "conditioner.embedders.0.model.") { return .other("the refiner of SDXL") }
        if tensors.contains(prefix: "cond_stage_model.model.") {
            return classes ? .other("a Stable unCLIP model") : .model(.stableDiffusion2)
        }
        if tensors.contains(prefix: "cond_stage_model.transformer.") { return .model(.stableDiffusion1) }
        // Without a text encoder the width of what the UNet reads tells.
        let context = tensors.names.first { $0.hasSuffix(".attn2.to_k.weight") }.flatMap { tensors[$0]?.last }
        return context.flatMap(ModelFamily.init(contextWidth:)).map { .model($0) }
            ?? .other("a UNet of an unknown family")
    }

    private static func embedding(_ tensors: TensorShapes) -> FileKind? {
        func description(_ shape: [Int], _ family: ModelFamily?) -> FileKind {
            .embedding(family, vectors: shape.count == 2 ? shape[0] : 1)
        }
        if let shape = tensors["clip_g"], tensors.contains("clip_l") { return description(shape, .stableDiffusionXL) }
        let names = Array(tensors.names)
        for name in ["string_to_param.*", "emb_params"] {
            if let shape = tensors[name] {
                return description(shape, shape.last.flatMap(ModelFamily.init(contextWidth:)))
            }
        }
        // diffusers saves one vector, or several, under the word they stand for.
        guard names.count == 1, let shape = tensors[names[0]], 1...2 ~= shape.count, let width = shape.last,
            [768, 1024, 1280].contains(width), !names[0].contains(".weight")
        else { return nil }
        return description(shape, ModelFamily(contextWidth: width))
    }

    /// What the file is, as the middle of a sentence.
    var words: String {
        switch self {
        case .model(let family): "a \(family.rawValue) model"
        case .autoencoder: "an autoencoder (VAE)"
        case .part(let words), .other(let words): words
        case .lora(let lora): "a LoRA" + (lora.family.map { " for \($0.rawValue)" } ?? "")
        case .embedding(let family, _): "a textual inversion" + (family.map { " for \($0.rawValue)" } ?? "")
        case .unknown: "no model that is known here"
        }
    }

    /// What a person who took it for a model can do.
    var advice: String {
        switch self {
        case .model: "give it as the model"
        case .autoencoder: "give it as model.vae beside a model"
        case .part: "give the folder that it is a part of"
        case .lora: "use it with loras: beside a model"
        case .embedding: "put it into the directory of embeddings, and its word into a prompt"
        case .other, .unknown:
            "this program draws with \(ModelFamily.allCases.map(\.rawValue).joined(separator: ", ")), as a folder of "
                + "diffusers' or a single .safetensors or .ckpt file"
        }
    }
}

extension LoRADescription {
    private static let downSuffixes = [
        ".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_A.default.weight", ".hada_w1_a", ".lokr_w1",
        ".lokr_w1_a",
    ]

    /// Reads a LoRA off its tensors; nil when they are of none.
    init?(_ tensors: TensorShapes) {
        var ranks: Set<Int> = []
        var targets: [String: Int] = [:]
        var extensions: Set<String> = []
        var context: Int?
        var (hasKohya, hasSecondEncoder) = (false, false)
        for name in tensors.names {
            if name.hasSuffix(".dora_scale") || name.contains(".lora_magnitude_vector") { extensions.insert("DoRA") }
            if name.contains(".lora_mid.") { extensions.insert("convolutions (LoCon)") }
            guard let suffix = Self.downSuffixes.first(where: name.hasSuffix), let shape = tensors[name] else {
                continue
            }
            if suffix.hasPrefix(".hada") { extensions.insert("LoHa") }
            if suffix.hasPrefix(".lokr") { extensions.insert("LoKr") }
            if shape.count == 4, shape[2] > 1 { extensions.insert("convolutions (LoCon)") }
            if !suffix.hasPrefix(".hada"), !suffix.hasPrefix(".lokr"), let rank = shape.first { ranks.insert(rank) }
            hasKohya = hasKohya || name.hasPrefix("lora_")
            let target: String
            if name.hasPrefix("lora_te2_") || name.hasPrefix("text_encoder_2.") {
                target = "second text encoder"
                hasSecondEncoder = true
            } else if name.hasPrefix("lora_te") || name.hasPrefix("text_encoder.") {
                target = "text encoder"
            } else {
                target = "UNet"
                // What a cross-attention's keys are made of has the width of the text encoder's states.
                if name.contains("attn2_to_k") || name.contains("attn2.to_k"), shape.count >= 2 { context = shape[1] }
            }
            targets[target, default: 0] += 1
        }
        guard !targets.isEmpty else { return nil }
        naming = hasKohya ? .kohya : .diffusers
        family = hasSecondEncoder ? .stableDiffusionXL : context.flatMap(ModelFamily.init(contextWidth:))
        self.ranks = ranks.sorted()
        self.targets = targets
        self.extensions = extensions.sorted()
    }
}
