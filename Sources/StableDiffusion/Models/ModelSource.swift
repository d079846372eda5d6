// Where a model comes from: a folder in diffusers' layout, or a single file in the original naming; with an autoencoder of
// another file or folder where that is wanted. Either way it yields the same: configurations, weights and a tokenizer.

internal import Glibc
internal import JSON

/// Which meaning of the model's output is assumed.
public enum PredictionChoice: String, CaseIterable, Sendable {
    /// What the model says of itself, or what its weights tell.
    case auto
    /// The noise.
    case epsilon
    /// The velocity.
    case velocity = "v_prediction"
    /// The picture.
    case sample
}

/// The parts of a model that has been found.
///
/// Only names, shapes and configurations have been read by then; weights are read through the checkpoints.
struct ModelSource: Sendable {
    /// A part's configuration and where its weights are.
    private struct Part: Sendable {
        /// Nil reads the folder's own.
        let configuration: ConfigurationFile?
        let weights: Weights
    }

    private enum Weights: Sendable {
        case directory(String)
        case file(WeightFile, TensorNaming)
    }

    /// What a person gave.
    let path: String
    /// The single file; nil for a folder.
    let file: WeightFile?
    /// The family of a single file; nil for a folder, whose configurations say more.
    let family: ModelFamily?
    /// Parts that are not read from the folder at `path`.
    private var parts: [String: Part] = [:]
    /// Configurations of a single file that belong to no weights.
    private var configurations: [String: JSONObject] = [:]
    private let prediction: PredictionChoice

    /// Finds a model.
    ///
    /// - Parameters:
    ///   - path: A folder of diffusers', or a `.safetensors` or `.ckpt` file.
    ///   - vae: An autoencoder to use instead of the model's own: a folder with `config.json`, a model's folder, or a file in either naming.
    ///   - prediction: What the model's output means, where it is known better than by looking at the file.
    /// - Throws: `WeightsError` or `ConfigurationFileError`.
    init(path: String, vae: String? = nil, prediction: PredictionChoice = .auto) throws {
        self.path = path
        self.prediction = prediction
        if directoryExists(path) {
            (file, family) = (nil, nil)
        } else if regularFileExists(path) {
            let file = try WeightFile(path: path)
            let tensors = TensorShapes(file)
            let kind = FileKind(tensors)
            guard case .model(let family) = kind else {
                throw WeightsError.wrongKind(file: path, found: kind.words, advice: kind.advice)
            }
            (self.file, self.family) = (file, family)
            try addParts(of: file, SingleFileConfiguration(family, tensors, path: path), hasOwnVAE: vae == nil)
        } else {
            var status = stat()
            throw ConfigurationFileError(
                file: path,
                found: stat(path, &status) == 0
                    ? "it is neither a folder nor a file" : "there is no such folder or file",
                allowed: "a model folder in diffusers' layout, with model_index.json, or a .safetensors or .ckpt file"
            )
        }
        if let vae { parts["vae"] = try Self.autoencoder(vae, for: self) }
    }

    private mutating func addParts(of file: WeightFile, _ derived: SingleFileConfiguration, hasOwnVAE: Bool) throws {
        let prediction = file.predictionType(derived.family)
        let size = derived.family.nativeSize(predictionType: prediction)
        func part(_ configuration: JSONObject, _ naming: @escaping TensorNaming) -> Part {
            Part(configuration: ConfigurationFile(path: path, values: configuration), weights: .file(file, naming))
        }
        let unetNames = try derived.unetNames()
        parts["unet"] = part(try derived.unet(sampleSize: size / 8)) { unetNames($0) }
        let (text, textNames) = try derived.textEncoder()
        parts["text_encoder"] = part(text, textNames)
        if derived.family == .stableDiffusionXL {
            let (second, secondNames) = try derived.secondTextEncoder()
            parts["text_encoder_2"] = part(second, secondNames)
        }
        if hasOwnVAE {
            // Some tools write `vae.`, and those of a whole model always have a prefix.
            let prefix = file.entries.keys.contains { $0.hasPrefix("vae.decoder.") } ? "vae." : "first_stage_model."
            let (vae, vaeNames) = try derived.vae(prefix: prefix, sampleSize: size)
            parts["vae"] = part(vae, vaeNames)
        }
        configurations["scheduler"] = derived.scheduler(predictionType: prediction)
        configurations["model_index"] = derived.index()
    }

    /// An autoencoder of another file or folder.
    private static func autoencoder(_ path: String, for model: ModelSource) throws -> Part {
        if directoryExists(path) {
            // A whole model's folder has it below.
            let directory = regularFileExists(path + "/vae/config.json") ? path + "/vae" : path
            return Part(
                configuration: try ConfigurationFile(path: directory + "/config.json"),
                weights: .directory(directory)
            )
        }
        let file = try WeightFile(path: path)
        let tensors = TensorShapes(file)
        let kind = FileKind(tensors)
        let prefix: String?
        switch kind {
        case .autoencoder(let found): prefix = found
        case .model: prefix = "first_stage_model."
        default:
            throw WeightsError.wrongKind(
                file: path,
                found: kind.words,
                advice: "model.vae is an autoencoder's file or folder"
            )
        }
        // The scaling factor is in no file; it is that of the model the autoencoder is for.
        let own = model.family == nil ? try? ConfigurationFile(path: model.path + "/vae/config.json") : nil
        let isXL = model.family == .stableDiffusionXL || regularFileExists(model.path + "/text_encoder_2/config.json")
        let derived = SingleFileConfiguration(isXL ? .stableDiffusionXL : .stableDiffusion1, tensors, path: path)
        var (configuration, naming) = try derived.vae(prefix: prefix, sampleSize: isXL ? 1024 : 512)
        if let factor = own?.value("scaling_factor") { configuration["scaling_factor"] = factor }
        return Part(
            configuration: ConfigurationFile(path: path, values: configuration),
            weights: .file(file, naming)
        )
    }

    /// What the model is called: the name of its folder, or of its file without the ending.
    var name: String {
        file == nil ? path.split(separator: "/").last.map(String.init) ?? path : checkpointName(ofFile: path)
    }

    /// The configuration of a part by diffusers' name of it, or of the `scheduler` or the `model_index`.
    func configuration(_ name: String) throws(ConfigurationFileError) -> ConfigurationFile {
        var file: ConfigurationFile
        if let own = parts[name]?.configuration {
            file = own
        } else if let values = configurations[name] {
            file = ConfigurationFile(path: path, values: values)
        } else {
            switch name {
            case "model_index": file = try ConfigurationFile(path: path + "/model_index.json")
            case "scheduler": file = try ConfigurationFile(path: path + "/scheduler/scheduler_config.json")
            // A whole CLIP's configuration has the text encoder's within.
            default: file = try ConfigurationFile(path: "\(path)/\(name)/config.json", nested: "text_config")
            }
        }
        if name == "scheduler", prediction != .auto {
            file.replace("prediction_type", with: .string(prediction.rawValue))
        }
        return file
    }

    /// Whether the model has a part: a folder's directory, or tensors of a file.
    func contains(_ name: String) -> Bool {
        parts[name] != nil || (file == nil && directoryExists("\(path)/\(name)"))
    }

    /// The weights of a part by diffusers' name of it.
    func checkpoint(_ name: String) throws(WeightsError) -> Checkpoint {
        switch parts[name]?.weights {
        case .file(let file, let naming): try Checkpoint(source: file.path, files: [file], naming: naming)
        case .directory(let directory): try Checkpoint(directory: directory)
        case nil: try Checkpoint(directory: "\(path)/\(name)")
        }
    }

    /// The tokenizer of a text encoder.
    ///
    /// A single file has none: a folder of diffusers' name beside it is used if there is one, else CLIP's vocabulary from within the program.
    ///
    /// - Parameters:
    ///   - name: `tokenizer` or `tokenizer_2`.
    ///   - textEncoder: What the ids are for.
    func tokenizer(
        _ name: String,
        textEncoder: CLIPTextModelConfiguration
    ) throws(ConfigurationFileError) -> CLIPTokenizer {
        guard let family else { return try CLIPTokenizer(directory: "\(path)/\(name)", textEncoder: textEncoder) }
        let beside = path.split(separator: "/", omittingEmptySubsequences: false).dropLast() + [Substring(name)]
        let directory = beside.joined(separator: "/")
        if directoryExists(directory) { return try CLIPTokenizer(directory: directory, textEncoder: textEncoder) }
        // OpenCLIP's encoders were trained with zeros after the end of the text, which is the id of "!".
        let isOpenCLIP = family == .stableDiffusion2 || name == "tokenizer_2"
        return try CLIPTokenizer(
            files: CLIPTokenizerFiles.embedded(padToken: isOpenCLIP ? "!" : "<|endoftext|>"),
            textEncoder: textEncoder
        )
    }
}

extension WeightFile {
    /// What the output of a single file's UNet means, as diffusers names it.
    ///
    /// Most models predict the noise. Of the others some say so; those of Stable Diffusion 2.x, which come in both kinds, are told apart as
    /// diffusers 0.42.1 does, by the number of steps of training, and where the file does not have it as ComfyUI does, by the spread of one
    /// bias (comfy/supported_models.py, SD20).
    func predictionType(_ family: ModelFamily) -> String {
        let velocity = "v_prediction"
        switch metadata["modelspec.prediction_type"] {
        case "v", velocity: return velocity
        case "epsilon": return "epsilon"
        default: break
        }
        if entries["v_pred"] != nil { return velocity }
        let channels = entries[LDMUNetNames.prefix + "input_blocks.0.0.weight"]?.shape.dropFirst().first
        guard family == .stableDiffusion2, channels == 4 else { return "epsilon" }
        if let step = metadata["global_step"] { return step == "875000" ? "epsilon" : velocity }
        let name = LDMUNetNames.prefix + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
        guard let entry = entries[name], let type = entry.type, type.isWeight, entry.count > 0,
            let values = try? withBytes(of: entry, type.floats)
        else { return velocity }
        let mean = values.reduce(0, +) / Float(values.count)
        let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Float(values.count)
        return variance.squareRoot() > 0.09 ? velocity : "epsilon"
    }
}
