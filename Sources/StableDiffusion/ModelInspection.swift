// What `diffused inspect` says of a file or a folder: what it is, its family, its parts with their size and precision, what is
// missing and what nobody asks for. Reads names and shapes, never a device.

internal import Foundation
internal import JSON

/// A part of a model, or the whole of a file that has no parts.
public struct InspectedPart: Codable, Sendable, Equatable {
    /// diffusers' name, such as `unet`.
    public var name: String
    /// The container: `safetensors` or `PyTorch`.
    public var format: String
    /// Tensors of the part.
    public var tensors: Int
    /// Numbers in them.
    public var parameters: Int
    /// Bytes in them.
    public var bytes: Int
    /// Share of the parameters in each storage type, as safetensors spells them.
    public var types: [String: Double]
    /// A sentence for each tensor the part needs that is missing, misshapen or of an unusable type.
    public var faults: [String]
}

/// What a file or a folder is.
///
/// Encoded as JSON with the names of `diffused inspect --json`.
public struct ModelInspection: Codable, Sendable, Equatable {
    /// What was looked at.
    public var path: String
    /// `model`, `autoencoder`, `part`, `lora`, `embedding`, `other` or `unknown`.
    public var kind: String
    /// The kind in words.
    public var description: String
    /// The family, where it can be told.
    public var family: String?
    /// What the UNet's output means, of a model.
    public var predictionType: String?
    /// Width and height in pixels of the pictures a model was trained for.
    public var nativeSize: Int?
    /// What a model is for beyond text to image, such as inpainting.
    public var task: String?
    /// The parts.
    public var parts: [InspectedPart]
    /// How many tensors nobody asks for, by the first word of their names: `model_ema`, `alphas_cumprod`.
    public var unused: [String: Int]
    /// Ranks, targets and naming of a LoRA; vectors of an embedding.
    public var details: [String: String]
    /// Why it cannot be drawn with; empty for what can be used.
    public var problems: [String]

    enum CodingKeys: String, CodingKey {
        case path, kind, description, family, task, parts, unused, details, problems
        case predictionType = "prediction_type"
        case nativeSize = "native_size"
    }

    /// Groups of unused tensors that are listed for a person.
    private static let listed = 6

    /// Looks at a file, a model's folder or the folder of a part.
    ///
    /// - Throws: `WeightsError` or `ConfigurationFileError` when there is nothing to look at, or a container is damaged.
    public init(path: String) throws {
        self.path = path
        kind = "unknown"
        description = ""
        parts = []
        unused = [:]
        details = [:]
        problems = []
        if directoryExists(path), !regularFileExists(path + "/model_index.json") {
            try inspectPartFolder()
        } else if directoryExists(path) {
            try inspectModel(family: nil)
        } else {
            let file = try WeightFile(path: path)
            let kind = FileKind(TensorShapes(file))
            if case .model(let family) = kind { try inspectModel(family: family) } else { inspect(file, kind) }
        }
    }

    /// A file that is not a whole model.
    private mutating func inspect(_ file: WeightFile, _ kind: FileKind) {
        parts = [InspectedPart(name: "tensors", format: file.format, entries: Array(file.entries.values), faults: [])]
        description = kind.words
        switch kind {
        case .model: self.kind = "model"
        case .autoencoder(let prefix):
            self.kind = "autoencoder"
            details["naming"] = prefix == nil ? "diffusers" : "original (LDM)"
        case .part: self.kind = "part"
        case .lora(let lora):
            self.kind = "lora"
            family = lora.family?.rawValue
            details["naming"] = lora.naming.rawValue
            details["rank"] = lora.ranks.map(String.init).joined(separator: ", ")
            details["layers"] = lora.targets.sorted { $0.key < $1.key }.map { "\($0.value) of the \($0.key)" }
                .joined(separator: ", ")
            if !lora.extensions.isEmpty { details["besides"] = lora.extensions.joined(separator: ", ") }
        case .embedding(let family, let vectors):
            self.kind = "embedding"
            self.family = family?.rawValue
            details["vectors"] = "\(vectors)"
        case .other: self.kind = "other"
        case .unknown: self.kind = "unknown"
        }
        for key in [
            "modelspec.title", "modelspec.architecture", "ss_base_model_version", "ss_network_module", "global_step",
        ] {
            if let value = file.metadata[key] { details[key] = value.printable }
        }
        if self.kind == "other" || self.kind == "unknown" { problems.append(kind.advice) }
    }

    /// A folder with the weights of one part.
    private mutating func inspectPartFolder() throws {
        let checkpoint = try Checkpoint(directory: path)
        let entries = checkpoint.files.flatMap { $0.entries.map(\.self) }
        let tensors = TensorShapes(
            Dictionary(entries.map { ($0.key, $0.value.shape) }, uniquingKeysWith: { first, _ in first })
        )
        let found = FileKind(tensors)
        description = found.words
        switch found {
        case .autoencoder: kind = "autoencoder"
        case .part: kind = "part"
        default: kind = "unknown"
        }
        let format = checkpoint.files.first?.format ?? .safetensors
        parts = [InspectedPart(name: "tensors", format: format, entries: entries.map(\.value), faults: [])]
    }

    /// A whole model, in a folder or a file.
    private mutating func inspectModel(family found: ModelFamily?) throws {
        kind = "model"
        let source: ModelSource
        do {
            source = try ModelSource(path: path)
        } catch let error as ConfigurationFileError {
            // A file whose parts do not make a model is still worth looking at.
            let file = try WeightFile(path: path)
            description = found.map { "a \($0.rawValue) model" } ?? "a model"
            family = found?.rawValue
            problems = [error.description]
            parts = [
                InspectedPart(name: "tensors", format: file.format, entries: Array(file.entries.values), faults: [])
            ]
            return
        }
        func attempt<Value>(_ body: () throws -> Value) -> Value? {
            do {
                return try body()
            } catch {
                if !problems.contains("\(error)") { problems.append("\(error)") }
                return nil
            }
        }
        if let scheduler = attempt({ try source.configuration("scheduler") }) {
            predictionType = scheduler.value("prediction_type")?.stringValue ?? "epsilon"
        }
        let unetFile = attempt { try source.configuration("unet") }
        family = (found ?? unetFile.flatMap { Self.family(of: $0, source) })?.rawValue
        description = "a \(family.map { "\($0) " } ?? "")model"
        task = unetFile?.value("in_channels")?.integerValue == 9 ? "inpainting" : nil
        if let model = attempt({ try ModelConfiguration(source) }) {
            nativeSize = model.nativeSize
        } else if let size = unetFile?.value("sample_size")?.integerValue, 1...65_536 ~= size {
            nativeSize = 8 * size
        }

        problems += inspectParts(of: source, unetFile).filter { !problems.contains($0) }
        for part in parts where !part.faults.isEmpty {
            problems.append(
                "\(part.name): \(part.faults.count) tensors are missing or cannot be used: \(part.faults[0])"
            )
        }
    }

    /// Lists the parts of a model, and what belongs to none.
    ///
    /// - Returns: Why parts cannot be opened.
    private mutating func inspectParts(of source: ModelSource, _ unetFile: ConfigurationFile?) -> [String] {
        // A configuration that is refused is told of elsewhere; its part is listed without knowing what it needs.
        let unet = unetFile.flatMap { file in try? UNet2DConditionModelConfiguration(file: file).tensors }
        let vae = (try? source.configuration("vae")).flatMap { try? AutoencoderKLConfiguration(file: $0) }
        let text = (try? source.configuration("text_encoder")).flatMap { try? CLIPTextModelConfiguration(file: $0) }
        let second = (try? source.configuration("text_encoder_2")).flatMap {
            try? CLIPTextModelConfiguration(file: $0, hasProjection: true)
        }
        let encoder = vae?.encoderTensors.map(\.name) ?? []
        var problems: [String] = []
        var (used, all): (Set<String>, Set<String>) = ([], [])
        for (name, needed, known) in [
            ("text_encoder", text?.tensors, []), ("text_encoder_2", second?.tensors, []),
            ("unet", unet, []), ("vae", vae?.decoderTensors, encoder),
        ] as [(String, [ModelTensor]?, [String])] {
            guard source.contains(name) || name != "text_encoder_2" else { continue }
            let checkpoint: Checkpoint
            do {
                checkpoint = try source.checkpoint(name)
            } catch {
                problems.append(error.description)
                continue
            }
            // Parts of a folder have files of their own, in which names may be the same.
            let place = source.file == nil ? name + "/" : ""
            all.formUnion(checkpoint.names.map { place + $0 })
            var entries: [String: WeightFile.Entry] = [:]
            for tensor in (needed ?? []).map(\.name) + known {
                guard let (stored, entry) = checkpoint.stored(tensor) else { continue }
                entries[stored.name] = entry
            }
            if needed == nil { entries = Self.entries(of: name, checkpoint, isFolder: source.file == nil) }
            used.formUnion(entries.keys.map { place + $0 })
            var faults: [String] = []
            for tensor in needed ?? [] {
                do throws(WeightsError) {
                    try checkpoint.check(tensor.name, shape: tensor.shape)
                } catch {
                    faults.append(error.description)
                }
            }
            let format = checkpoint.files.first?.format ?? .safetensors
            parts.append(InspectedPart(name: name, format: format, entries: Array(entries.values), faults: faults))
        }
        for name in all.subtracting(used) { unused[String(name.prefix { $0 != "." }).printable, default: 0] += 1 }
        return problems
    }

    /// The tensors of a part whose configuration this program does not know.
    private static func entries(of part: String, _ checkpoint: Checkpoint, isFolder: Bool) -> [String: WeightFile.Entry]
    {
        let prefixes = [
            "unet": [LDMUNetNames.prefix], "vae": ["first_stage_model.", "vae."],
            "text_encoder": ["cond_stage_model.", "conditioner.embedders.0."],
            "text_encoder_2": ["conditioner.embedders.1."],
        ]
        var entries: [String: WeightFile.Entry] = [:]
        for file in checkpoint.files {
            for (name, entry) in file.entries
            where isFolder || prefixes[part]?.contains(where: name.hasPrefix) ?? false { entries[name] = entry }
        }
        return entries
    }

    private static func family(of unet: ConfigurationFile, _ source: ModelSource) -> ModelFamily? {
        if source.contains("text_encoder_2") { return .stableDiffusionXL }
        switch unet.value("cross_attention_dim")?.integerValue {
        case let width?: return ModelFamily(contextWidth: width)
        case nil: return nil
        }
    }

    // MARK: - Output

    /// One JSON object.
    public func json() throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return String(decoding: try encoder.encode(self), as: UTF8.self)
    }

    /// Several lines for a person.
    public var text: String {
        var lines = ["\(path): \(description)"]
        var facts: [(String, String)] = []
        if let family, !description.contains(family) { facts.append(("family", family)) }
        if let predictionType { facts.append(("predicts", Self.words[predictionType] ?? predictionType)) }
        if let nativeSize { facts.append(("native size", "\(nativeSize) x \(nativeSize)")) }
        if let task { facts.append(("made for", task)) }
        for (key, value) in details.sorted(by: { $0.key < $1.key }) { facts.append((key, value)) }
        let width = facts.map(\.0.count).max() ?? 0
        for (name, value) in facts {
            lines.append("  " + name.padding(toLength: width + 2, withPad: " ", startingAt: 0) + value)
        }
        if !parts.isEmpty {
            lines.append("")
            var rows = [["part", "tensors", "parameters", "size", "stored as", "container"]]
            for part in parts {
                let types = part.types.sorted { ($1.value, $0.key) < ($0.value, $1.key) }.map { name, share in
                    (Self.typeNames[name] ?? name) + (share < 0.995 ? String(format: " (%.0f %%)", 100 * share) : "")
                }
                rows.append([
                    part.name, "\(part.tensors)", Self.short(part.parameters, ["", " k", " M", " G"], 1000),
                    Self.short(part.bytes, [" B", " KiB", " MiB", " GiB"], 1024),
                    types.prefix(3).joined(separator: ", "), part.format,
                ])
            }
            let widths = rows[0].indices.map { column in rows.map(\.[column].count).max() ?? 0 }
            for row in rows {
                let cells = zip(row, widths).enumerated().map { index, cell in
                    let padding = String(repeating: " ", count: cell.1 - cell.0.count)
                    return (1...3).contains(index) ? padding + cell.0 : cell.0 + padding
                }
                lines.append(
                    "  " + cells.joined(separator: "  ").trimmingCharacters(in: CharacterSet(charactersIn: " "))
                )
            }
        }
        if !unused.isEmpty {
            let groups = unused.sorted { ($1.value, $0.key) < ($0.value, $1.key) }
            let listed =
                groups.prefix(Self.listed).map { "\($0.key) (\($0.value))" }
                + (groups.count > Self.listed ? ["..."] : [])
            lines.append("")
            lines.append("  not used: " + listed.joined(separator: ", "))
        }
        lines.append("")
        if problems.isEmpty {
            lines.append(kind == "model" ? "  complete" : "  nothing is wrong with it")
        } else {
            lines += problems.map { "  ! \($0)" }
        }
        return lines.joined(separator: "\n")
    }

    private static let words = [
        "epsilon": "the noise (epsilon)", "v_prediction": "the velocity (v_prediction)",
        "sample": "the picture (sample)",
    ]
    private static let typeNames = [
        "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I64": "int64",
    ]

    private static func short(_ value: Int, _ units: [String], _ base: Double) -> String {
        var (number, index) = (Double(value), 0)
        while number >= base, index < units.count - 1 {
            number /= base
            index += 1
        }
        return String(format: index == 0 || number >= 100 ? "%.0f" : "%.1f", number) + units[index]
    }
}

extension InspectedPart {
    /// Adds tensors up.
    fileprivate init(name: String, format: WeightFile.Format, entries: [WeightFile.Entry], faults: [String]) {
        // A tensor may claim any shape where its type is unknown or its elements repeat; a byte holds two numbers at most.
        let counts = Dictionary(
            entries.map { ($0.typeName, min($0.count, 2 * $0.range.count)) },
            uniquingKeysWith: +
        )
        let total = counts.values.reduce(0, +)
        self.init(
            name: name,
            format: format.rawValue,
            tensors: entries.count,
            parameters: total,
            bytes: entries.reduce(0) { $0 + $1.range.count },
            types: counts.filter { $0.value > 0 }.mapValues { Double($0) / Double(max(total, 1)) },
            faults: faults
        )
    }
}
