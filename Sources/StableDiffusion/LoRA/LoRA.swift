// A LoRA's file: which modules of a model its matrices belong to, under whichever names trainers and libraries wrote them, and everything that
// makes it unfit for the model, said before the device has any work. The spellings were read off kohya-ss/sd-scripts (networks/lora.py) and
// diffusers 0.42.1 (loaders/lora_conversion_utils.py, loaders/lora_pipeline.py).

internal import Foundation
internal import JSON

/// What is wrong with a LoRA, or with another file that is used beside a model.
struct UnfitFileError: Error, Equatable, CustomStringConvertible {
    /// One sentence, which does not name the file.
    let description: String
}

/// The modules of a model that LoRAs may change.
struct LoRATargets: Sendable {
    /// Shape of each module's weight: `[O, C]` of a linear layer, `[O, C, k, k]` of a convolution.
    let shapes: [ModuleName: [Int]]
    /// Modules by all that files call them.
    private let names: [String: ModuleName]
    /// Width of the hidden states that the UNet reads.
    let contextWidth: Int
    /// How many text encoders there are.
    let textEncoders: Int

    /// The modules of a model.
    init(_ configuration: ModelConfiguration) {
        var shapes: [ModuleName: [Int]] = [:]
        var names: [String: ModuleName] = [:]
        func add(_ tensors: [ModelTensor], _ part: ModelPart, spellings: (String) -> [String]) {
            for tensor in tensors where tensor.name.hasSuffix(".weight") && tensor.shape.count > 1 {
                let path = String(tensor.name.dropLast(".weight".count))
                // Tables, which are no matrices that anything is multiplied by.
                if path.hasPrefix("embeddings.") { continue }
                let module = ModuleName(part: part, path: path)
                shapes[module] = tensor.shape
                for spelling in spellings(path) { names[spelling] = module }
            }
        }
        let ldm = LDMUNetNames(
            layersPerBlock: configuration.unet.layersPerBlock,
            upBlocksHaveAttention: configuration.unet.upBlockTypes.map { $0 == .crossAttnUpBlock2D }
        )
        add(configuration.unet.tensors, .unet) { path in
            var spellings = ["unet." + path, path, "lora_unet_" + path.underscored]
            // The name of a tensor is needed, whichever, for the name of its module.
            if let stored = ldm(path + ".weight").first?.name.dropFirst(LDMUNetNames.prefix.count) {
                let original = stored.dropLast(".weight".count)
                spellings += ["diffusion_model." + original, "lora_unet_" + String(original).underscored]
            }
            return spellings
        }
        for (index, encoder) in configuration.textEncoders.enumerated() {
            let prefix = index == 0 ? "text_encoder." : "text_encoder_\(index + 1)."
            let kohya = configuration.textEncoders.count == 1 ? ["lora_te_", "lora_te1_"] : ["lora_te\(index + 1)_"]
            add(encoder.tensors, .textEncoder(index)) { path in
                [path, "text_model." + path].flatMap { path in
                    [prefix + path] + kohya.map { $0 + path.underscored }
                }
            }
        }
        self.shapes = shapes
        self.names = names
        contextWidth = configuration.unet.crossAttentionDim
        textEncoders = configuration.textEncoders.count
    }

    /// The module that a file means by a name.
    func module(_ name: String) -> ModuleName? {
        if let module = names[name] { return module }
        // PEFT's wrapper, and the attention processors of diffusers before 0.22.
        var name = name.replacingOccurrences(of: "base_model.model.", with: "")
            .replacingOccurrences(of: ".processor.", with: ".")
        if name.hasPrefix("text_encoder") {
            for (old, new) in [("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")]
            where name.hasSuffix(".self_attn." + old) {
                name = name.dropLast(old.count) + new
            }
        } else if name.hasSuffix(".to_out") {
            name += ".0"
        }
        return names[name]
    }
}

extension String {
    /// kohya's spelling of a dotted path.
    fileprivate var underscored: String { replacingOccurrences(of: ".", with: "_") }
}

/// A LoRA that fits a model.
final class LoRA {
    /// What a LoRA adds to a module: `up` times `down`.
    struct Pair {
        let rank: Int
        /// `[rank, C, k, k]`.
        let down: [Float]
        /// `[O, rank]`, with the LoRA's own scale and its weight in it.
        let up: [Float]
    }

    private enum Role: Hashable {
        case down, up, alpha
    }

    private struct Matrices {
        let down: String
        let downShape: [Int]
        let up: String
        let upShape: [Int]
        /// alpha / rank.
        let scale: Double
    }

    /// What names of tensors end in.
    private static let suffixes: [(String, Role)] = [
        (".lora_down.weight", .down), (".lora_up.weight", .up), (".alpha", .alpha),
        (".lora_A.weight", .down), (".lora_B.weight", .up),
        (".lora_A.default.weight", .down), (".lora_B.default.weight", .up),
        (".lora.down.weight", .down), (".lora.up.weight", .up),
        ("_lora.down.weight", .down), ("_lora.up.weight", .up),
        (".lora_linear_layer.down.weight", .down), (".lora_linear_layer.up.weight", .up),
    ]

    /// Parts of names that tell other ways to change a model.
    private static let otherKinds = [
        (".dora_scale", "DoRA"), (".lora_magnitude_vector", "DoRA"), (".hada_", "LoHa"), (".lokr_", "LoKr"),
        (".oft_", "OFT"), (".on_input", "IA3"), (".ia3_", "IA3"), (".lora_mid.", "LoCon with a Tucker decomposition"),
        (".w_norm", "differences of normalisations"),
        (".b_norm", "differences of normalisations"), ("bundle_emb.", "a LoRA with embeddings in it"),
        (".lora_up.bias", "a LoRA with biases"), (".lora_B.bias", "a LoRA with biases"),
    ]

    /// The other way to change a model that a tensor's name tells of.
    private static func otherKind(_ name: String) -> String? {
        if name.hasSuffix(".diff") || name.hasSuffix(".diff_b") { return "whole differences of weights" }
        return otherKinds.first { name.contains($0.0) }?.1
    }

    private let checkpoint: Checkpoint
    private let modules: [ModuleName: Matrices]

    /// How many modules it changes.
    var count: Int { modules.count }

    /// Reads a file's names, shapes and scales, and looks for numbers that are none.
    ///
    /// - Throws: `WeightsError` for the file, `UnfitFileError` for what does not fit the model.
    init(path: String, _ targets: LoRATargets) throws {
        let file = try WeightFile(path: path)
        checkpoint = try Checkpoint(source: path, files: [file]) { [StoredTensor($0)] }
        let shapes = TensorShapes(file)
        for name in file.entries.keys.sorted() {
            if let kind = Self.otherKind(name) {
                throw UnfitFileError(
                    description: "it is \(kind) (\"\(name)\"), which is not supported; plain LoRA and LoCon are"
                )
            }
        }
        guard let description = LoRADescription(shapes) else {
            let kind = FileKind(shapes)
            throw UnfitFileError(description: "it is \(kind.words) and no LoRA; \(kind.advice)")
        }
        try Self.checkFamily(description, shapes, targets)

        var found: [ModuleName: [Role: String]] = [:]
        var unknown: [String] = []
        for name in file.entries.keys.sorted() {
            guard let (suffix, role) = Self.suffixes.first(where: { name.hasSuffix($0.0) }),
                let module = targets.module(String(name.dropLast(suffix.count)))
            else {
                unknown.append(name)
                continue
            }
            if let other = found[module, default: [:]].updateValue(name, forKey: role) {
                throw UnfitFileError(description: "\"\(other)\" and \"\(name)\" are the same matrix of one module")
            }
        }
        guard unknown.isEmpty else {
            let some = unknown.prefix(3).map { "\"\($0)\"" }.joined(separator: ", ")
            throw UnfitFileError(
                description:
                    "it is a LoRA\(description.family.map { " for \($0.rawValue)" } ?? "") with tensors for which "
                    + "the model has no layer (\(unknown.count) of \(file.entries.count), such as \(some)), so it was made for "
                    + "another model"
            )
        }
        let alphas = try SavedAlphas(file.metadata)
        var modules: [ModuleName: Matrices] = [:]
        for (module, names) in found {
            modules[module] = try Self.matrices(module, names, shapes, targets, checkpoint, alphas)
        }
        self.modules = modules
    }

    /// Refuses a LoRA for another family, whose layers may still have names that the model's have.
    private static func checkFamily(
        _ description: LoRADescription,
        _ shapes: TensorShapes,
        _ targets: LoRATargets
    ) throws(UnfitFileError) {
        let family = description.family.map { " for \($0.rawValue)" } ?? ""
        let advice = "use one that was made for the model's family"
        if description.targets["second text encoder"] != nil, targets.textEncoders < 2 {
            throw UnfitFileError(
                description:
                    "it is a LoRA\(family) that changes a second text encoder, and the model has one; \(advice)"
            )
        }
        let contexts = Set(
            shapes.names.compactMap { name -> Int? in
                guard
                    name.contains("attn2_to_k.") || name.contains("attn2.to_k.")
                        || name.contains("attn2.processor.to_k_"),
                    let (_, role) = suffixes.first(where: { name.hasSuffix($0.0) }), role == .down,
                    let shape = shapes[name], shape.count >= 2
                else { return nil }
                return shape[1]
            }
        )
        if let other = contexts.first(where: { $0 != targets.contextWidth }) {
            let made = ModelFamily(contextWidth: other).map { " for \($0.rawValue)" } ?? ""
            let own = ModelFamily(contextWidth: targets.contextWidth).map { " (\($0.rawValue))" } ?? ""
            throw UnfitFileError(
                description: "it is a LoRA\(made), whose UNet reads text of width \(other); the model's\(own) reads "
                    + "\(targets.contextWidth); \(advice)"
            )
        }
    }

    private static func matrices(
        _ module: ModuleName,
        _ names: [Role: String],
        _ shapes: TensorShapes,
        _ targets: LoRATargets,
        _ checkpoint: Checkpoint,
        _ alphas: SavedAlphas
    ) throws -> Matrices {
        guard let down = names[.down], let up = names[.up], let downShape = shapes[down], let upShape = shapes[up]
        else {
            let there = names.values.sorted().joined(separator: "\", \"")
            throw UnfitFileError(
                description: "of two matrices of \(module.path) only \"\(there)\" is there; the file is incomplete"
            )
        }
        let target = targets.shapes[module] ?? []
        let (rank, kernel) = (downShape.first ?? 0, Array(target.dropFirst(2)))
        let expectedDown = [rank, target[1]] + kernel
        let expectedUp = [target[0], rank]
        guard rank > 0, downShape.withoutTrailingOnes == expectedDown.withoutTrailingOnes,
            upShape.withoutTrailingOnes == expectedUp.withoutTrailingOnes
        else {
            throw UnfitFileError(
                description:
                    "\"\(down)\" \(downShape) and \"\(up)\" \(upShape) do not fit \(module.path) \(target) of the "
                    + "model, so it was made for another model"
            )
        }
        for (name, shape) in [(down, downShape), (up, upShape)] {
            try checkpoint.withTensor(named: name, shape: shape) { _, _ in }
        }
        var alpha = alphas.alpha(of: module, rank: rank)
        if let name = names[.alpha] {
            let values = try checkpoint.floats(named: name, shape: shapes[name] ?? [])
            guard values.count == 1 else {
                throw UnfitFileError(description: "\"\(name)\" is \(values.count) numbers; one is expected")
            }
            alpha = Double(values[0])
        }
        return Matrices(
            down: down,
            downShape: downShape,
            up: up,
            upShape: upShape,
            scale: alpha / (alphas.usesRootOfRank(module) ? Double(rank).squareRoot() : Double(rank))
        )
    }

    /// What it adds to a module; nil for nothing.
    func pair(_ module: ModuleName, weight: Double) throws -> Pair? {
        guard let matrices = modules[module] else { return nil }
        var down = try checkpoint.floats(named: matrices.down, shape: matrices.downShape)
        var up = try checkpoint.floats(named: matrices.up, shape: matrices.upShape)
        let scale = Float(matrices.scale * weight)
        for index in up.indices { up[index] *= scale }
        let largestDown = down.reduce(0) { max($0, abs($1)) }
        let largestUp = up.reduce(0) { max($0, abs($1)) }
        guard largestDown > 0, largestUp > 0 else { return nil }
        // Trained matrices differ in size by orders of magnitude, and small numbers have few bits in half precision: both are brought to about
        // the same size, exactly, by a power of two.
        let shift = ((log2(largestDown) - log2(largestUp)) / 2).rounded()
        if shift.isFinite, shift != 0 {
            let factor = exp2(shift)
            for index in up.indices { up[index] *= factor }
            for index in down.indices { down[index] /= factor }
        }
        return Pair(rank: matrices.downShape[0], down: down, up: up)
    }
}

/// Scales in the metadata of a file that diffusers 0.34 or later saved (loaders/lora_base.py), where the tensors have none.
private struct SavedAlphas {
    private let settings: JSONObject

    init(_ metadata: [String: String]) throws(UnfitFileError) {
        guard let text = metadata["lora_adapter_metadata"] else {
            settings = [:]
            return
        }
        guard let value = try? JSONValue(parsing: Array(text.utf8)), case .object(let object) = value else {
            throw UnfitFileError(
                description: "its metadata \"lora_adapter_metadata\" is no JSON object; the file is damaged"
            )
        }
        settings = object
    }

    private func setting(_ key: String, _ module: ModuleName) -> JSONValue? {
        let prefix =
            switch module.part {
            case .unet: "unet"
            case .textEncoder(0): "text_encoder"
            case .textEncoder(let index): "text_encoder_\(index + 1)"
            }
        return settings["\(prefix).\(key)"]
    }

    func usesRootOfRank(_ module: ModuleName) -> Bool { setting("use_rslora", module) == .bool(true) }

    /// The module's alpha; its rank where nothing is said.
    func alpha(of module: ModuleName, rank: Int) -> Double {
        // Exceptions by the end of a module's name.
        for (pattern, value) in setting("alpha_pattern", module)?.objectValue ?? [:]
        where module.path == pattern || module.path.hasSuffix("." + pattern) || pattern.hasSuffix("." + module.path) {
            if let alpha = value.doubleValue { return alpha }
        }
        if let alpha = setting("lora_alpha", module)?.doubleValue { return alpha }
        // Without any alpha the scale is 1, also by the root of the rank.
        return usesRootOfRank(module) ? Double(rank).squareRoot() : Double(rank)
    }
}
